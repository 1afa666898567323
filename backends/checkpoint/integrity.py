"""The judgement whether a step's folder is what its manifest says.

Sizes always; every byte, and what the safetensors headers and the index say, unless told otherwise.
It changes nothing and repairs nothing. Invariant: a folder that passes gives the same tensors to
`read_tensors` and to any other reader of safetensors folders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from backends.checkpoint.errors import BadRecord, Corrupt
from backends.checkpoint.manifest import INDEX, Manifest
from backends.checkpoint.reading import Pace, Spans, check_file, opened, read_range
from backends.checkpoint.tensors import MAX_HEADER, header

# progress(bytes checked, bytes in all)
Progress = Callable[[int, int], None]
MAX_INDEX = 64 << 20


def check_folder(
    folder: Path,
    manifest: Manifest,
    *,
    every_byte: bool = True,
    pace: Pace | None = None,
    progress: Progress | None = None,
) -> None:
    """Raises Incomplete, Corrupt, Unreadable or Cancelled unless the step is whole."""
    pace, done, total = pace or Pace(), 0, manifest.total
    members: dict[str, dict[str, tuple[int, int, str]]] = defaultdict(dict)
    for name, tensor in manifest.tensors.items():
        members[tensor.file][name] = (tensor.start, tensor.end, tensor.xxh3)
    for path, record in sorted(manifest.files.items()):
        with opened(folder, path, record.bytes) as fd:
            if every_byte:
                spans = members.get(path, {})
                check_file(fd, path, record.bytes, record.xxh3, spans, pace)
                if spans:
                    _check_header(fd, path, manifest, spans)
                elif path == INDEX:
                    _check_index(read_range(fd, path, 0, min(record.bytes, MAX_INDEX)), manifest)
        done += record.bytes
        if progress is not None:
            progress(done, total)


def _check_header(fd: int, path: str, manifest: Manifest, spans: Spans) -> None:
    """The file's own table of tensors says what the manifest says."""
    length = int.from_bytes(read_range(fd, path, 0, 8), "little")
    if not 0 < length <= min(MAX_HEADER, manifest.files[path].bytes - 8):
        raise Corrupt(path, "a safetensors header", f"a header of {length} bytes")
    start = 8 + length
    table = {
        name: header(
            manifest.tensors[name].shape, manifest.tensors[name].dtype, begin - start, end - start
        )
        for name, (begin, end, _) in spans.items()
    }
    found = _json(path, read_range(fd, path, 8, start))
    found.pop("__metadata__", None)
    _compare(path, table, found)


def _check_index(data: bytes, manifest: Manifest) -> None:
    weights = {name: tensor.file.rpartition("/")[2] for name, tensor in manifest.tensors.items()}
    found = _json(INDEX, data).get("weight_map")
    _compare(INDEX, weights, found if isinstance(found, dict) else {})


def _compare(path: str, expected: dict[str, Any], found: dict[str, Any]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise Corrupt(
                f"{path}:{name}",
                f"{expected.get(name, 'nothing')} as in the manifest",
                str(found.get(name, "nothing")),
            )


def _json(path: str, data: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRecord(f"{path}: its header or text is not JSON") from error
    if not isinstance(value, dict):
        raise BadRecord(f"{path}: its header or text is no table")
    return value
