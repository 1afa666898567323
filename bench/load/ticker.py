"""A timer of microseconds for an event loop whose own timers count milliseconds.

Owns one timerfd (Linux); where there is none, the loop's timer stands in and the lateness that this
brings shows in the report. `at` replaces what was set before.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress

_MONOTONIC, _ABSOLUTE = 1, 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Ticker:
    """Calls `callback` once at each time that was set with `at` (seconds of `time.monotonic`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop, self._callback = loop, callback
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        with suppress(AttributeError, OSError):
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            self._spec = _Itimerspec()
            self._reference = ctypes.byref(self._spec)
            loop.add_reader(self._fd, self._fired)

    def at(self, when: float) -> None:
        if self._fd < 0:
            self.cancel()
            delay = max(0.0, when - time.monotonic())
            self._handle = self._loop.call_later(delay, self._callback)
            return
        # Never zero, which would disarm it; a time that is past fires at once.
        nanoseconds = max(1, int(when * 1e9))
        self._spec.value.seconds, self._spec.value.nanoseconds = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, self._reference, None)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def close(self) -> None:
        self.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fired(self) -> None:
        with suppress(BlockingIOError):  # it was set anew between the event and this call
            os.read(self._fd, 8)
        self._callback()
