"""What each worker of a gateway has let in, where the others can see it: in memory that they share.

Owns one mapped file for each set of tenants, and this worker's row in it. Nobody waits for anybody:
a row is written by its one worker, and read by all. Invariants: a row is held by one process, for
the kernel frees it with its holder; counters of a row only lag, they never lie for long.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

# Per tenant: requests and tokens that were charged since the file was made, and requests that live.
REQUESTS, TOKENS, LIVE = range(3)
FIELDS = 3
WIDTH = 8  # of a float
# Beside the configured workers: those that are being replaced still hold theirs.
SPARE_ROWS = 8


class Tally:
    """`folder`: of the gateway, private to it. Raises OSError where no row can be had."""

    def __init__(self, folder: Path, tenants: Sequence[str], workers: int) -> None:
        names = sorted(tenants)
        self._columns = {name: at for at, name in enumerate(names)}
        rows = workers + SPARE_ROWS
        mark = hashlib.sha256("\n".join([str(rows), *names]).encode()).hexdigest()[:16]
        self._row, self._lock = _claim(folder, mark, rows)
        size = rows * len(names) * FIELDS * WIDTH
        file = os.open(folder / f"tally-{mark}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(file, size)
            self._map = mmap.mmap(file, size)
        finally:
            os.close(file)
        self._cells = memoryview(self._map).cast("d")
        self._rows, self._stride = rows, len(names) * FIELDS
        for name in names:  # what the row's last holder had in flight is gone with it
            self._cells[self._place(self._row, name, LIVE)] = 0.0

    def add(self, tenant: str, field: int, amount: float) -> None:
        self._cells[self._place(self._row, tenant, field)] += amount

    def others(self, tenant: str, field: int) -> float:
        """Of all workers but this one."""
        at = self._place(0, tenant, field)
        column = self._cells[at :: self._stride]
        return sum(column) - self._cells[self._place(self._row, tenant, field)]

    def close(self) -> None:
        self._cells.release()
        self._map.close()
        os.close(self._lock)

    def _place(self, row: int, tenant: str, field: int) -> int:
        return row * self._stride + self._columns[tenant] * FIELDS + field


def _claim(folder: Path, mark: str, rows: int) -> tuple[int, int]:
    """(row, the descriptor that holds it)."""
    for row in range(rows):
        path = folder / f"tally-{mark}.{row}"
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            continue
        return row, lock
    raise OSError(f"all {rows} rows of the tally are held")
