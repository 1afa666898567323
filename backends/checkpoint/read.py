"""What a backend does with a committed step: verify it, read its tensors.

Owns where the bytes go; `reading` has the loop, `integrity` the judgement. Invariant: every tensor
that is returned has the bytes that were committed, in memory of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from backends.checkpoint.errors import BadRecord, CheckpointError, Unreadable
from backends.checkpoint.integrity import Progress, check_folder
from backends.checkpoint.manifest import Manifest
from backends.checkpoint.reading import Pace, fill, opened
from backends.checkpoint.run import Run
from backends.checkpoint.tensors import DTYPES, empty, host_bytes


def verify(
    run: Run,
    step: int,
    *,
    hash: str | None = None,
    every_byte: bool = True,
    bytes_per_second: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of a whole step; `hash` is the one it must have (None: any).

    Raises NoSuchStep, BadRecord, Incomplete, Corrupt, Unreadable or Cancelled.
    """
    manifest = run.manifest(step, hash=hash)
    pace = Pace(bytes_per_second, cancelled)
    check_folder(run.folder(step), manifest, every_byte=every_byte, pace=pace, progress=progress)
    return manifest


def is_whole(run: Run, step: int, *, every_byte: bool = True) -> bool:
    """Raises Unreadable when the file system keeps it from telling."""
    try:
        verify(run, step, every_byte=every_byte)
    except Unreadable:
        raise
    except CheckpointError:
        return False
    return True


def read_tensors(
    folder: Path,
    manifest: Manifest,
    *,
    names: Iterable[str] | None = None,
    into: Mapping[str, Tensor] | None = None,
    pace: Pace | None = None,
    threads: int = 1,
) -> dict[str, Tensor]:
    """The tensors `names` (None: all, aliases included) in host memory; an alias is the same one.

    `into` gives buffers (contiguous, in host memory, of the right shape and dtype) to read into.
    `pace` bounds the rate, and can stop it; who reads one after the other gives all the same one.
    `threads` read side by side: a fast disk wants several. Raises Incomplete, Corrupt, Unreadable,
    Cancelled, or BadRecord for a name or a buffer that does not fit; buffers then hold nothing of
    use.
    """
    wanted = list(manifest.structure) if names is None else list(dict.fromkeys(names))
    stored = {
        name: _buffer(name, manifest, into or {})
        for name in dict.fromkeys(manifest.ties.get(name, name) for name in wanted)
    }
    _check_into(into or {}, stored, manifest)
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in sorted(stored, key=lambda name: manifest.tensors[name].start):
        by_file[manifest.tensors[name].file].append(name)
    pace = pace or Pace()
    for path, members in sorted(by_file.items()):
        # The pool ends, and with it every use of the descriptor, before the file is closed.
        with opened(folder, path, manifest.files[path].bytes) as fd, _workers(threads) as each:

            def load(name: str, fd: int = fd, path: str = path) -> None:
                record = manifest.tensors[name]
                data = host_bytes(stored[name])
                fill(fd, f"{path}:{name}", record.start, data, record.xxh3, pace)

            for _ in each(load, members):
                pass
    return {name: stored[manifest.ties.get(name, name)] for name in wanted}


@contextmanager
def _workers(threads: int) -> Iterator[Callable[..., Iterator[None]]]:
    """Something like `map`, on that many threads."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _buffer(name: str, manifest: Manifest, into: Mapping[str, Tensor]) -> Tensor:
    record = manifest.tensors.get(name)
    if record is None:
        raise BadRecord(f"step {manifest.step} has no tensor {name!r}")
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


def _check_into(
    into: Mapping[str, Tensor], stored: Mapping[str, Tensor], manifest: Manifest
) -> None:
    """Every buffer will be filled: it is a stored tensor's, or an alias in one's memory."""
    for name, tensor in into.items():
        target = stored.get(manifest.ties.get(name, name))
        if target is None:
            raise BadRecord(f"into[{name!r}] is not among the tensors to read")
        if target.data_ptr() != tensor.data_ptr():
            raise BadRecord(
                f"into[{name!r}] must share memory with {manifest.ties.get(name, name)!r}"
            )
