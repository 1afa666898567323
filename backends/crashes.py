"""What fails on the device again and again: told of, counted, and whether it is the device's end.

Owns how often it was told of, on the device thread; loads torch only once something failed.
Invariant: at most one event in `EVERY_S`, so that the log does not fill the disk; each counts what
has failed since the one before.
"""

from __future__ import annotations

import time
import traceback
from typing import Any

from backends.events import Events

EVERY_S = 1.0


class Crashes:
    """`counted` is the field of `event` that says how many."""

    def __init__(self, events: Events, event: str, counted: str) -> None:
        self._events, self._event, self._counted = events, event, counted
        # None was told of yet.
        self._told_at, self._since = float("-inf"), 0

    def __call__(self, error: BaseException, **fields: Any) -> str:
        """Why nothing can run on the device any more; empty if something can."""
        self._since += 1
        now = time.monotonic()
        if now - self._told_at >= EVERY_S:
            said = {self._counted: self._since, "error": repr(error)[:500], **fields}
            self._events(self._event, **said, where=_where(error))
            self._told_at, self._since = now, 0
        return f"the device is lost: {error}" if device_is_lost(error) else ""


def device_is_lost(error: BaseException) -> bool:
    """CUDA's sticky errors outlive what raised them."""
    import torch

    if isinstance(error, torch.OutOfMemoryError) or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _where(error: BaseException) -> str:
    """The line on which it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
