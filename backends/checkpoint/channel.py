"""Channels: named pointers that serving follows, each with a history one can walk back.

Owns `<run>/channels/<name>.json` and the copy of the record before it, which answers when the last
one is damaged. Invariant: generations only grow, each belongs to one publisher, and a channel never
points at a step that was not verified, byte for byte, by who pointed it there.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backends.checkpoint.errors import (
    BadRecord,
    Busy,
    ChannelMoved,
    CheckpointError,
    NoRollback,
    Quarantined,
)
from backends.checkpoint.lease import ReaderLease
from backends.checkpoint.manifest import Manifest
from backends.checkpoint.quarantine import is_quarantined, reason
from backends.checkpoint.read import verify
from backends.checkpoint.records import MAX_RECORD, read_bounded, seal, unseal
from backends.checkpoint.run import Run

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# How far back one can go; a record stays small.
HISTORY = 64
# How often a rollback looks anew when others move the channel under it.
ATTEMPTS = 8


@dataclass(frozen=True, slots=True)
class ChannelEntry:
    """What the channel pointed at in one generation; `back` is the generation to which a rollback
    goes from there (None: none)."""

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def behind(self) -> list[ChannelEntry]:
        """Where rollbacks would go, nearest first."""
        by_generation = {entry.generation: entry for entry in self.previous}
        found, back = [], self.back
        while back is not None and (entry := by_generation.pop(back, None)) is not None:
            found.append(entry)
            back = entry.back
        return found


def channel_names(run: Run) -> list[str]:
    stems = (path.name.removesuffix(".json") for path in run.channels.glob("*.json"))
    return sorted(stem for stem in stems if _NAME.fullmatch(stem))


def read_channel(run: Run, name: str) -> ChannelRecord | None:
    """None if nothing was published there yet. When the last record is damaged, the one before it:
    an older version, but a good one. Raises BadRecord when both are, Unreadable."""
    record, written = _last(run, name)
    if record is None and written:
        raise BadRecord(
            f"channel {name} is damaged, and nothing was published before; publish anew"
        )
    return record


def publish(run: Run, name: str, step: int, *, expected: int | None = None) -> ChannelRecord:
    """Points the channel at `step`, under a new generation.

    Verifies every byte first. Raises NoSuchStep, BadRecord, Incomplete, Corrupt, Quarantined, or
    ChannelMoved if the channel is not at generation `expected` (None: any; 0: nothing published).
    """
    _path(run, name)
    with ReaderLease(run, step, "publisher"):
        manifest = verify(run, step)
        with run.lock():
            current, _ = _last(run, name)
            _expect(current, name, expected)
            _allowed(run, manifest)
            back = current.generation if current else None
            return _write(run, name, current, step, manifest.hash, back)


def rollback(run: Run, name: str, *, expected: int | None = None) -> ChannelRecord:
    """Points the channel, under a new generation, at the nearest earlier version that is whole and
    not in quarantine; what was rolled back before is not among them.

    Two parties that find the same fault give the generation they saw as `expected`: the second gets
    ChannelMoved instead of going back twice. Raises NoRollback.
    """
    for _ in range(ATTEMPTS):
        current = read_channel(run, name)
        _expect(current, name, expected)
        target = _target(run, current) if current else None
        if target is None:
            raise NoRollback(f"channel {name} has no earlier version that is whole and not refused")
        with run.lock():
            # Its bytes were read without the lock; that it is there is checked with it.
            if read_channel(run, name) == current and _usable(run, target, every_byte=False):
                return _write(run, name, current, target.step, target.hash, target.back)
    raise Busy(f"channel {name} keeps moving; try again")


def mirror_channel(run: Run, record: ChannelRecord) -> None:
    """Writes a record that was made elsewhere, as it is. The step must be there.

    Raises ChannelMoved if the channel is at its generation already, or further.
    """
    path = _path(run, record.name)
    with run.lock():
        current, written = _last(run, record.name)
        if current is not None and written >= record.generation:
            raise ChannelMoved(f"channel {record.name} is at generation {written} already")
        run.manifest(record.step, hash=record.hash)
        run.disk.make_folders(run.channels)
        if current is not None:
            run.disk.write_file(_before(path), seal(current.to_json()))
        run.disk.write_file(path, seal(record.to_json()))


def _target(run: Run, current: ChannelRecord) -> ChannelEntry | None:
    for entry in current.behind():
        if entry.hash != current.hash and _usable(run, entry, every_byte=True):
            return entry
    return None


def _usable(run: Run, entry: ChannelEntry, *, every_byte: bool) -> bool:
    try:
        verify(run, entry.step, hash=entry.hash, every_byte=every_byte)
        return not is_quarantined(run, entry.hash)
    except CheckpointError:
        return False


def _write(
    run: Run, name: str, current: ChannelRecord | None, step: int, hash: str, back: int | None
) -> ChannelRecord:
    path = _path(run, name)
    run.disk.make_folders(run.channels)
    if current is not None:
        run.disk.write_file(_before(path), seal(current.to_json()))
    record = ChannelRecord(
        name=name,
        generation=_last(run, name)[1] + 1,
        step=step,
        hash=hash,
        back=back,
        at=run.host.wall(),
        previous=(*current.previous, current.entry)[-HISTORY:] if current else (),
    )
    run.disk.write_file(path, seal(record.to_json()))
    return record


def _last(run: Run, name: str) -> tuple[ChannelRecord | None, int]:
    """The last record that can be read, and the generation of the last that was written."""
    path = _path(run, name)
    try:
        record = _read(path, name)
        return record, record.generation if record else 0
    except BadRecord:
        # The copy is written first, so what is damaged was the generation after it.
        record = _read(_before(path), name)
        return record, (record.generation if record else 0) + 1


def _read(path: Path, name: str) -> ChannelRecord | None:
    data = read_bounded(path, MAX_RECORD)
    return None if data is None else parse_channel(data, name)


def parse_channel(data: bytes, name: str) -> ChannelRecord:
    """Raises BadRecord unless `data` is a channel's record of that name."""
    value = unseal(data, f"channel {name}")
    try:
        previous = tuple(ChannelEntry(**entry) for entry in value.pop("previous"))
        record = ChannelRecord(previous=previous, **value)
    except (KeyError, TypeError) as error:
        raise BadRecord(f"channel {name} is malformed: {error}") from error
    if record.name != name:
        raise BadRecord(f"channel {name} says it is {record.name}")
    return record


def _expect(current: ChannelRecord | None, name: str, expected: int | None) -> None:
    found = current.generation if current else 0
    if expected is not None and found != expected:
        raise ChannelMoved(f"channel {name} is at generation {found}, not {expected}")


def _allowed(run: Run, manifest: Manifest) -> None:
    """The step is still the one verified, and may be served."""
    run.manifest(manifest.step, hash=manifest.hash)
    if is_quarantined(run, manifest.hash):
        raise Quarantined(
            f"version {manifest.version} is in quarantine: {reason(run, manifest.hash)}"
        )


def _path(run: Run, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise BadRecord(f"{name!r} cannot name a channel: use letters, digits and . _ -")
    return run.channels / f"{name}.json"


def _before(path: Path) -> Path:
    return path.with_name(f".{path.name}")
