"""Watches where a channel of a run points.

Owns the thread that looks at the channel's file; it says what it found and decides nothing.
Invariant: whatever it meets, it looks again after `poll_s` at the latest, until it is stopped.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from backends.checkpoint import ChannelRecord, Run, read_channel


class Watching:
    """`found` and `unread` (why it cannot be read) are called on its thread."""

    def __init__(
        self,
        run: Run,
        channel: str,
        *,
        poll_s: float,
        found: Callable[[ChannelRecord | None], None],
        unread: Callable[[str], None],
    ) -> None:
        self._run, self._channel, self._poll_s = run, channel, poll_s
        self._found, self._unread = found, unread
        self._stop, self._nudge = threading.Event(), threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="channel", daemon=True).start()

    def look_again(self) -> None:
        """Say it anew, even if it points where it did."""
        self._nudge.set()

    def stop(self) -> None:
        """Does not wait for a disk that hangs."""
        self._stop.set()
        self._nudge.set()

    def _watch(self) -> None:
        """The channel's file is replaced as a whole, so its identity tells of a change."""
        path = self._run.channels / f"{self._channel}.json"
        seen: tuple[int, int, int] | None = None
        while not self._stop.is_set():
            nudged = self._nudge.is_set()
            self._nudge.clear()
            try:
                found = os.stat(path)
                identity = (found.st_ino, found.st_mtime_ns, found.st_size)
                if identity != seen or nudged:
                    self._found(read_channel(self._run, self._channel))
                    seen = identity
            except FileNotFoundError:
                seen = None
            except Exception as error:  # whatever it is, look again
                self._unread(f"{path}: {error}")
                seen = None
            self._nudge.wait(self._poll_s)
