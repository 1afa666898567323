"""Positioned reads into memory that the caller owns, hashed on the way, at a bounded pace.

Owns the loop over chunks. Never maps a file: a mapped tensor changes when the file does. Invariant:
bytes that do not match their hash are read once more past the page cache, then reported Corrupt.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import xxhash

from backends.checkpoint.errors import Cancelled, Corrupt, Incomplete

# Large enough that calls cost nothing, small enough to be hashed while still in the cache.
CHUNK = 1 << 20


class Pace:
    """Keeps reading under a rate, and stops it when the caller has lost interest."""

    def __init__(
        self,
        bytes_per_second: float | None,
        cancelled: Callable[[], bool] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_second is not None and bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be positive, or None for no limit")
        self._rate, self._cancelled = bytes_per_second, cancelled
        self._clock, self._sleep = clock, sleep
        self._due = clock()

    def spend(self, count: int) -> None:
        """`count` bytes are about to be read. Raises Cancelled."""
        self._check()
        if self._rate is None:
            return
        # Time lost elsewhere is not made up for by a burst.
        self._due = max(self._due, self._clock())
        while (wait := self._due - self._clock()) > 0:
            self._sleep(min(wait, 0.1))
            self._check()
        self._due += count / self._rate

    def _check(self) -> None:
        if self._cancelled is not None and self._cancelled():
            raise Cancelled("reading the checkpoint was cancelled")


def hashed(fd: int, path: str, start: int, end: int, expected: str, pace: Pace) -> None:
    """Reads bytes [start, end) and compares their hash; keeps none of them."""
    scratch = memoryview(bytearray(min(CHUNK, max(end - start, 1))))
    _compare(
        fd, path, start, end, expected, lambda: _hash(fd, path, start, end, None, scratch, pace)
    )


def fill(fd: int, path: str, start: int, into: memoryview, expected: str, pace: Pace) -> None:
    """Reads `len(into)` bytes from `start` into `into` and compares their hash."""
    end = start + len(into)
    _compare(fd, path, start, end, expected, lambda: _hash(fd, path, start, end, into, into, pace))


def _compare(
    fd: int, path: str, start: int, end: int, expected: str, read: Callable[[], str]
) -> None:
    found = read()
    if found == expected:
        return
    # The page cache may hold damage that the disk does not.
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
    found = read()
    if found != expected:
        raise Corrupt(path, f"xxh3 {expected}", f"xxh3 {found}")


def _hash(
    fd: int,
    path: str,
    start: int,
    end: int,
    into: memoryview | None,
    scratch: memoryview,
    pace: Pace,
) -> str:
    hasher, at = xxhash.xxh3_128(), start
    while at < end:
        count = min(CHUNK, end - at)
        view = scratch[:count] if into is None else into[at - start : at - start + count]
        pace.spend(count)
        got = os.preadv(fd, [view], at)
        if got <= 0:
            raise Incomplete(path, f"{end} bytes", f"{at} bytes")
        hasher.update(view[:got])
        at += got
    return str(hasher.hexdigest())
