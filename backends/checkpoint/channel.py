"""Channels: named pointers that serving follows, each with a history one can walk back.

Owns `<run>/channels/<name>.json`. Invariant: generations only grow, each belongs to one publisher,
and a channel never points at a step that was not verified, byte for byte, by who pointed it there.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from backends.checkpoint.errors import (
    BadRecord,
    ChannelMoved,
    CheckpointError,
    NoRollback,
    Quarantined,
)
from backends.checkpoint.lease import ReaderLease
from backends.checkpoint.manifest import Manifest
from backends.checkpoint.quarantine import is_quarantined, reason
from backends.checkpoint.records import read_record, seal
from backends.checkpoint.run import Run
from backends.checkpoint.verify import verify

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# How far back one can go; a record stays small.
HISTORY = 64


@dataclass(frozen=True, slots=True)
class ChannelEntry:
    """What the channel pointed at in one generation; `back` is the generation before it, to which
    a rollback goes (None: none)."""

    generation: int
    step: int
    hash: str
    back: int | None
    at: float


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    name: str
    generation: int
    step: int
    hash: str
    back: int | None
    at: float
    previous: tuple[ChannelEntry, ...] = ()  # oldest first

    @property
    def version(self) -> str:
        return f"{self.step}-{self.hash[:8]}"

    @property
    def entry(self) -> ChannelEntry:
        return ChannelEntry(self.generation, self.step, self.hash, self.back, self.at)

    def behind(self) -> list[ChannelEntry]:
        """Where rollbacks would go, nearest first."""
        by_generation = {entry.generation: entry for entry in self.previous}
        found, back = [], self.back
        while back is not None and back in by_generation:
            found.append(by_generation[back])
            back = by_generation[back].back
        return found


def channel_names(run: Run) -> list[str]:
    return sorted(path.stem for path in run.channels.glob("*.json"))


def read_channel(run: Run, name: str) -> ChannelRecord | None:
    """None if nothing was published there yet. Raises BadRecord when it cannot be trusted."""
    value = read_record(_path(run, name))
    if value is None:
        return None
    try:
        previous = tuple(ChannelEntry(**entry) for entry in value.pop("previous"))
        record = ChannelRecord(previous=previous, **value)
    except (KeyError, TypeError) as error:
        raise BadRecord(f"channel {name} is malformed: {error}") from error
    if record.name != name:
        raise BadRecord(f"channel {name} says it is {record.name}")
    return record


def publish(run: Run, name: str, step: int, *, expected: int | None = None) -> ChannelRecord:
    """Points the channel at `step`, under a new generation.

    Verifies every byte first. Raises NoSuchStep, BadRecord, Incomplete, Corrupt, Quarantined, or
    ChannelMoved if the channel is not at generation `expected` (None: any).
    """
    _path(run, name)
    with ReaderLease(run, step, "publisher"):
        manifest = verify(run, step)
        with run.lock():
            current = read_channel(run, name)
            _expect(current, name, expected)
            _still(run, manifest)
            entry = ChannelEntry(
                generation=current.generation + 1 if current else 1,
                step=step,
                hash=manifest.hash,
                back=current.generation if current else None,
                at=run.host.wall(),
            )
            return _write(run, name, current, entry)


def rollback(run: Run, name: str, *, expected: int | None = None) -> ChannelRecord:
    """Points the channel, under a new generation, at the nearest earlier version that is whole and
    not in quarantine; a version that was rolled back is not among them.

    Two parties that find the same fault give the generation they saw as `expected`: the second gets
    ChannelMoved instead of going back twice. Raises NoRollback.
    """
    with run.lock():
        current = read_channel(run, name)
        _expect(current, name, expected)
        for target in current.behind() if current else []:
            if current is None or target.hash == current.hash or not _good(run, target):
                continue
            entry = ChannelEntry(
                generation=current.generation + 1,
                step=target.step,
                hash=target.hash,
                back=target.back,
                at=run.host.wall(),
            )
            return _write(run, name, current, entry)
    raise NoRollback(f"channel {name} has no earlier version that is whole and not in quarantine")


def _write(
    run: Run, name: str, current: ChannelRecord | None, entry: ChannelEntry
) -> ChannelRecord:
    previous = (*current.previous, current.entry)[-HISTORY:] if current else ()
    record = ChannelRecord(name=name, previous=previous, **asdict(entry))
    run.disk.make_folders(run.channels)
    run.disk.write_file(_path(run, name), seal(asdict(record)))
    return record


def _expect(current: ChannelRecord | None, name: str, expected: int | None) -> None:
    found = current.generation if current else 0
    if expected is not None and found != expected:
        raise ChannelMoved(f"channel {name} is at generation {found}, not {expected}")


def _still(run: Run, manifest: Manifest) -> None:
    """The step is still the one verified, and may be served."""
    if run.manifest(manifest.step).hash != manifest.hash:
        raise BadRecord(f"step {manifest.step} changed while it was being published")
    if is_quarantined(run, manifest.hash):
        raise Quarantined(
            f"version {manifest.version} is in quarantine: {reason(run, manifest.hash)}"
        )


def _good(run: Run, entry: ChannelEntry) -> bool:
    try:
        return verify(run, entry.step).hash == entry.hash and not is_quarantined(run, entry.hash)
    except CheckpointError:
        return False


def _path(run: Run, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise BadRecord(f"{name!r} cannot name a channel: use letters, digits and . _ -")
    return run.channels / f"{name}.json"
