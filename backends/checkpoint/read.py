"""Reads a committed model's tensors for a backend.

Owns where the bytes go; `reading` has the loop, `verify` the judgement on whole steps. Invariant:
every tensor that is returned has the bytes that were committed, in memory of its own.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from backends.checkpoint.disk import open_regular
from backends.checkpoint.errors import BadRecord, Incomplete
from backends.checkpoint.manifest import Manifest
from backends.checkpoint.reading import Pace, fill
from backends.checkpoint.tensors import DTYPES, empty, host_bytes
from backends.checkpoint.verify import verify

__all__ = ["read_tensors", "verify"]


def read_tensors(
    folder: Path,
    manifest: Manifest,
    *,
    names: Iterable[str] | None = None,
    into: Mapping[str, Tensor] | None = None,
    bytes_per_second: float | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Tensor]:
    """The tensors `names` (None: all, aliases included) in host memory; an alias is the same one.

    `into` gives buffers (contiguous, in host memory, of the right shape and dtype) to read into.
    Raises Incomplete, Corrupt, Cancelled, or BadRecord for a name or buffer that does not fit;
    buffers then hold nothing of use.
    """
    wanted = list(manifest.structure) if names is None else list(dict.fromkeys(names))
    stored: dict[str, Tensor] = {}
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(manifest.ties.get(name, name) for name in wanted):
        if name not in manifest.tensors:
            raise BadRecord(f"step {manifest.step} has no tensor {name!r}")
        by_file[manifest.tensors[name].file].append(name)
    pace = Pace(bytes_per_second, cancelled)
    for path, members in sorted(by_file.items()):
        size = manifest.files[path].bytes
        try:
            fd = open_regular(folder, path)
        except FileNotFoundError as error:
            raise Incomplete(path, f"{size} bytes", "no file") from error
        try:
            found = os.fstat(fd).st_size
            if found != size:
                raise Incomplete(path, f"{size} bytes", f"{found} bytes")
            for name in sorted(members, key=lambda name: manifest.tensors[name].start):
                record = manifest.tensors[name]
                tensor = _buffer(name, manifest, into or {})
                fill(fd, f"{path}:{name}", record.start, host_bytes(tensor), record.xxh3, pace)
                stored[name] = tensor
        finally:
            os.close(fd)
    return {name: stored[manifest.ties.get(name, name)] for name in wanted}


def _buffer(name: str, manifest: Manifest, into: Mapping[str, Tensor]) -> Tensor:
    record = manifest.tensors[name]
    tensor = into.get(name)
    if tensor is None:
        return empty(record.shape, record.dtype)
    if (
        tuple(tensor.shape) != record.shape
        or tensor.dtype != DTYPES[record.dtype]
        or not tensor.is_contiguous()
        or tensor.device.type != "cpu"
    ):
        raise BadRecord(
            f"into[{name!r}] must be contiguous, in host memory, {record.dtype} {record.shape}"
        )
    return tensor
