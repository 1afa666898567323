"""A device that takes ℓ(b) = τ₀ + α·b for a batch of b rows, whatever is computed: every server is
given the same one, so that what differs is how it forms batches.

Owns the reading of the curve from the environment, which every server of a run inherits. Without
it, computing takes what it takes. It sleeps: a device leaves the processor to others.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

VARIABLE = "BENCH_DEVICE_MS"


class BadCurve(ValueError):
    """The message has what was expected."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds of a batch, and of each row in it."""

    base_ms: float
    row_ms: float

    @classmethod
    def parse(cls, text: str) -> Curve:
        """BASE:ROW. Raises BadCurve."""
        base, colon, row = text.partition(":")
        try:
            found = cls(float(base), float(row))
        except ValueError:
            colon = ""
        if not colon or not (0 <= found.base_ms < 1e4 and 0 <= found.row_ms < 1e3):
            raise BadCurve(f'expected milliseconds as BASE:ROW, such as "8:0.1", got {text!r}')
        return found

    @classmethod
    def given(cls) -> Curve | None:
        """That of the environment. Raises BadCurve."""
        text = os.environ.get(VARIABLE)
        return cls.parse(text) if text else None

    def __str__(self) -> str:
        return f"{self.base_ms:g}:{self.row_ms:g}"

    def seconds(self, rows: int) -> float:
        return (self.base_ms + self.row_ms * rows) / 1e3

    def capacity(self, rows: int) -> float:
        """Rows a second, in batches of so many."""
        return rows / self.seconds(rows)

    def wait(self, began: float, rows: int) -> None:
        """Until a batch that `began` then (`time.perf_counter`) has taken its time."""
        left = began + self.seconds(rows) - time.perf_counter()
        if left > 0:
            time.sleep(left)
