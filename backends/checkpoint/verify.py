"""Checks a committed step: sizes always, every byte unless told otherwise.

Owns the judgement "whole". It changes nothing and repairs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from backends.checkpoint.disk import open_regular
from backends.checkpoint.errors import BadRecord, Incomplete
from backends.checkpoint.manifest import Manifest
from backends.checkpoint.reading import Pace, hashed
from backends.checkpoint.run import Run

# progress(bytes checked, bytes in all)
Progress = Callable[[int, int], None]


def verify(
    run: Run,
    step: int,
    *,
    every_byte: bool = True,
    bytes_per_second: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """The manifest of a whole step. Raises NoSuchStep, BadRecord, Incomplete or Corrupt."""
    manifest = run.manifest(step)
    pointer = _pointer(run)
    if pointer and pointer[0] == step and pointer[1] != manifest.hash:
        raise BadRecord(f"step {step} has manifest {manifest.hash}, but LATEST says {pointer[1]}")
    pace = Pace(bytes_per_second, cancelled)
    done = 0
    for path, record in sorted(manifest.files.items()):
        try:
            fd = open_regular(run.folder(step), path)
        except FileNotFoundError as error:
            raise Incomplete(path, f"{record.bytes} bytes", "no file") from error
        try:
            size = os.fstat(fd).st_size
            if size != record.bytes:
                raise Incomplete(path, f"{record.bytes} bytes", f"{size} bytes")
            if every_byte:
                hashed(fd, path, 0, size, record.xxh3, pace)
        finally:
            os.close(fd)
        done += record.bytes
        if progress:
            progress(done, manifest.total)
    return manifest


def _pointer(run: Run) -> tuple[int, str] | None:
    try:
        return run.pointer()
    except BadRecord:
        return None
