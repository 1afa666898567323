"""Points a channel of a run to where another of its channels points: how a version is promoted.

Owns the threads that do it, for every byte is verified first. Invariant: a channel moves only
between the versions that the asker named, and the asker hears of the outcome, whatever it is.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from backends.checkpoint import (
    ChannelMoved,
    ChannelRecord,
    CheckpointError,
    Run,
    publish,
    read_channel,
)
from backends.errors import Conflict
from backends.events import Events


class Pointing:
    def __init__(self, run: Run, events: Events, copy_of: str) -> None:
        """`copy_of`: the place that the run is a copy of, where its channels are moved."""
        self._run, self._events, self._copy_of = run, events, copy_of
        self._loop = asyncio.get_running_loop()

    def __call__(
        self, channel: str, like: str, version: str, before: str
    ) -> asyncio.Future[dict[str, Any]]:
        """Point `channel` of the run to where channel `like` points, if that is at `version` and
        `channel` is at `before` ("": wherever it is). The new record; or Conflict."""
        if self._copy_of:
            raise Conflict(f"its run is a copy of {self._copy_of}: publish there")
        done: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        # Ends with its work, or with the process: nothing waits for a disk that hangs.
        threading.Thread(
            target=self._point,
            args=(done, channel, like, version, before),
            name="point",
            daemon=True,
        ).start()
        return done

    def _point(self, done: asyncio.Future[dict[str, Any]], *arguments: str) -> None:
        outcome: dict[str, Any] | Exception
        try:
            record = copy_channel(self._run, *arguments)
        except (CheckpointError, OSError, ValueError) as error:
            outcome = Conflict(str(error))
        except Exception as error:  # a defect of ours: who asked is told, nothing else suffers
            outcome = error
        else:
            self._events("channel.pointed", channel=record.name, version=record.version)
            told = {"channel": record.name, "version": record.version}
            outcome = {**told, "generation": record.generation}
        with suppress(RuntimeError):  # the loop is closed: the replica has ended
            self._loop.call_soon_threadsafe(_settle, done, outcome)


def copy_channel(run: Run, channel: str, like: str, version: str, before: str) -> ChannelRecord:
    """Raises ChannelMoved where one of them is elsewhere, and what `publish` raises."""
    source, target = read_channel(run, like), read_channel(run, channel)
    for name, record, wanted in ((like, source, version), (channel, target, before)):
        if wanted and (record is None or record.version != wanted):
            found = record.version if record else "nowhere"
            raise ChannelMoved(f"channel {name} is at {found}, not at {wanted}")
    if source is None:
        raise ChannelMoved(f"nothing was published to channel {like} yet")
    if target is not None and target.hash == source.hash:
        return target
    return publish(run, channel, source.step, expected=target.generation if target else 0)


def _settle(done: asyncio.Future[dict[str, Any]], outcome: dict[str, Any] | Exception) -> None:
    if done.done():
        return
    if isinstance(outcome, Exception):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)
