"""Positioned reads into memory that the caller owns, hashed on the way, at a bounded pace.

Owns the loop over chunks and the second look. Never maps a file: a mapped tensor changes when its
file does. Invariant: bytes that do not match their hash are read once more past the page cache, and
only then called Corrupt.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import xxhash

from backends.checkpoint.disk import open_regular
from backends.checkpoint.errors import Cancelled, Corrupt, Incomplete, Unreadable

# Small enough to be hashed while still in the CPU's cache, large enough that taking turns with busy
# Python threads, a few milliseconds each time, does not add up.
CHUNK = 4 << 20
# A paced reader takes no more at once than in this time, and no less than so many bytes.
BREATH_S, SIP = 0.05, 64 << 10
# How long a paced reader sleeps at most before it looks again whether it was cancelled.
NAP_S = 0.1

# A byte range of a file and the hash that it should have.
Spans = Mapping[str, tuple[int, int, str]]


class Pace:
    """Keeps reading under a rate, and stops it when the caller has lost interest. Thread-safe."""

    def __init__(
        self,
        bytes_per_second: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be positive, or None for no limit")
        self._rate, self._cancelled = bytes_per_second, cancelled
        self._clock, self._sleep = clock, sleep
        self.chunk = CHUNK
        if bytes_per_second is not None:
            self.chunk = min(CHUNK, max(SIP, int(bytes_per_second * BREATH_S)))
        self._due = clock()
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        """`count` bytes are about to be read. Raises Cancelled."""
        self._check()
        if self._rate is None:
            return
        with self._lock:
            # Time lost elsewhere is not made up for by a burst.
            turn = max(self._due, self._clock())
            self._due = turn + count / self._rate
        while (wait := turn - self._clock()) > 0:
            self._sleep(min(wait, NAP_S))
            self._check()

    def _check(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("reading the checkpoint was cancelled")


@contextmanager
def opened(folder: Path, path: str, size: int) -> Iterator[int]:
    """The file, open for reading. Raises Incomplete unless it is there with `size` bytes."""
    try:
        fd = open_regular(folder, path)
    except FileNotFoundError as error:
        raise Incomplete(path, f"{size} bytes", "no file") from error
    except OSError as error:
        raise Unreadable(f"{path}: {error}") from error
    try:
        found = os.fstat(fd).st_size
        if found != size:
            raise Incomplete(path, f"{size} bytes", f"{found} bytes")
        yield fd
    finally:
        os.close(fd)


def fill(fd: int, path: str, start: int, into: memoryview, expected: str, pace: Pace) -> None:
    """Reads `len(into)` bytes from `start` into `into`. Raises Corrupt."""
    end = start + len(into)

    def read() -> dict[str, str]:
        hasher = xxhash.xxh3_128()
        for chunk in _chunks(fd, path, start, end, into, pace):
            hasher.update(chunk)
        return {path: hasher.hexdigest()}

    _twice(fd, {path: expected}, read)


def check_file(fd: int, path: str, size: int, expected: str, spans: Spans, pace: Pace) -> None:
    """Reads the whole file once and compares its hash and that of each span, in ascending order and
    without overlap; keeps nothing. Raises Corrupt, naming the span if it is one."""
    scratch = memoryview(bytearray(min(CHUNK, max(size, 1))))
    order = sorted(spans, key=lambda name: spans[name][:2])
    wanted = {f"{path}:{name}": spans[name][2] for name in order} | {path: expected}

    def read() -> dict[str, str]:
        whole, at, found = xxhash.xxh3_128(), 0, {}
        for name in order:
            start, end, _ = spans[name]
            own = xxhash.xxh3_128()
            for chunk in _chunks(fd, path, at, start, scratch, pace):
                whole.update(chunk)
            for chunk in _chunks(fd, path, start, end, scratch, pace):
                whole.update(chunk)
                own.update(chunk)
            found[f"{path}:{name}"], at = own.hexdigest(), end
        for chunk in _chunks(fd, path, at, size, scratch, pace):
            whole.update(chunk)
        found[path] = whole.hexdigest()
        return found

    _twice(fd, wanted, read)


def read_range(fd: int, path: str, start: int, end: int) -> bytes:
    """Some bytes of a file, unhashed: for headers of files that were checked."""
    data = memoryview(bytearray(end - start))
    for _ in _chunks(fd, path, start, end, data, Pace()):
        pass
    return bytes(data)


def _twice(fd: int, expected: Mapping[str, str], read: Callable[[], Mapping[str, str]]) -> None:
    if read() == expected:
        return
    # The page cache may hold damage that the disk does not.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    found = read()
    for what, hash in expected.items():
        if found[what] != hash:
            raise Corrupt(what, f"xxh3 {hash}", f"xxh3 {found[what]}")


def _chunks(
    fd: int, path: str, start: int, end: int, memory: memoryview, pace: Pace
) -> Iterator[memoryview]:
    """Bytes [start, end) chunk by chunk, in `memory`: each at its place if all of them fit there,
    else one over the other."""
    at, keep = start, len(memory) >= end - start
    while at < end:
        count = min(pace.chunk, end - at)
        offset = at - start if keep else 0
        pace.spend(count)
        try:
            got = os.preadv(fd, [memory[offset : offset + count]], at)
        except OSError as error:
            raise Unreadable(f"{path}: {error}") from error
        if got <= 0:
            raise Incomplete(path, f"{end} bytes", f"{at} bytes")
        yield memory[offset : offset + got]
        at += got
