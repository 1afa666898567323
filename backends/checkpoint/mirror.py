"""A run on an object store: pushed by who trains, pulled by who serves on another machine.

    <url>/ckpt/step-<step>/…                 as on a disk; MANIFEST.json is put last: the commit
    <url>/channels/<name>/<generation>.json  put once and never replaced; the highest is the channel

Owns what is put where, and in which order. Invariants: a channel in the store names only steps
whose manifest is there; what `pull` made visible has the bytes that were committed, every one of
them hashed on the way; two publishers never overwrite one another's generation.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress

import xxhash

from backends.checkpoint import trash
from backends.checkpoint.channel import ChannelRecord, mirror_channel, parse_channel, read_channel
from backends.checkpoint.commit import adopt
from backends.checkpoint.errors import ChannelMoved, CommitAborted, Corrupt, NoSuchStep, StepExists
from backends.checkpoint.integrity import Progress
from backends.checkpoint.lease import ReaderLease, claimed
from backends.checkpoint.manifest import MAX_BYTES, NAME, FileRecord, Manifest
from backends.checkpoint.objects import Store
from backends.checkpoint.read import verify
from backends.checkpoint.reading import Pace
from backends.checkpoint.records import MAX_RECORD, seal
from backends.checkpoint.run import Run
from backends.checkpoint.staging import Staging

# What serving needs of a step; the rest is the trainer's, and several times as large.
SERVED = "model/"
_GENERATION = re.compile(r"(\d{12})\.json")


def push(
    run: Run, channel: str, store: Store, *, progress: Progress | None = None
) -> ChannelRecord | None:
    """Puts what the channel points at into the store, then the channel's record; safe to repeat.

    None if nothing was published there yet. Raises ChannelMoved when another publisher has put a
    different record of this generation (or a later one), StepExists when another run's step is
    there, and what `verify` raises.
    """
    record = read_channel(run, channel)
    if record is None:
        return None
    # Its name alone: a record that is damaged must not keep the next one, which mends it, away.
    newest = max(_generations(store, channel), default=0)
    if newest > record.generation:
        raise ChannelMoved(
            f"{store.url}: channel {channel} is at generation {newest}, "
            f"this run is at {record.generation}"
        )
    push_step(run, record.step, store, progress=progress)
    key = _record(channel, record.generation)
    text = seal(record.to_json())
    if not store.put_new(key, text) and store.get(key, MAX_RECORD) != text:
        raise ChannelMoved(f"{store.url}/{key}: another publisher was there first")
    for entry in record.behind()[:1]:
        with suppress(NoSuchStep):  # pruned here; who needs it has it, or goes without
            push_step(run, entry.step, store)
    return record


def push_step(run: Run, step: int, store: Store, *, progress: Progress | None = None) -> Manifest:
    """Puts a whole step into the store, the manifest last; safe to repeat."""
    with ReaderLease(run, step, "push"):
        manifest = verify(run, step)
        text = manifest.to_bytes()
        home = f"ckpt/{run.folder(step).name}"
        found = store.get(f"{home}/{NAME}", MAX_BYTES)
        if found is None:
            done = 0
            for path, record in sorted(manifest.files.items()):
                store.put_file(f"{home}/{path}", run.folder(step) / path)
                done += record.bytes
                if progress is not None:
                    progress(done, manifest.total)
            if store.put_new(f"{home}/{NAME}", text):
                return manifest
            found = store.get(f"{home}/{NAME}", MAX_BYTES)
        if found != text:
            raise StepExists(
                f"{store.url}: step {step} is there already, and is another; push to a fresh place"
            )
        return manifest


def newest_channel(store: Store, channel: str) -> ChannelRecord | None:
    """Where the channel points in the store. Raises BadRecord when its record is damaged."""
    newest = max(_generations(store, channel), default=None)
    if newest is None:
        return None
    data = store.get(_record(channel, newest), MAX_RECORD)
    return None if data is None else parse_channel(data, channel)


def _generations(store: Store, channel: str) -> list[int]:
    found = map(_GENERATION.fullmatch, store.names(f"channels/{channel}"))
    return [int(match[1]) for match in found if match]


def _record(channel: str, generation: int) -> str:
    return f"channels/{channel}/{generation:012d}.json"


def pull(
    store: Store,
    run: Run,
    step: int,
    hash: str | None = None,
    *,
    served_only: bool = True,
    bytes_per_second: float | None = None,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Brings a step into `run`, under its own name and manifest; nothing if it is there already.

    `served_only` leaves the trainer's state out: such a copy can be served, not resumed. Raises
    NoSuchStep, Corrupt or Incomplete (the store's bytes are not those committed), BadRecord,
    Unreadable, Cancelled, Busy, or StepExists when the run holds another step of that number.
    """
    home = f"ckpt/{run.folder(step).name}"
    text = store.get(f"{home}/{NAME}", MAX_BYTES)
    manifest = None if text is None else Manifest.parse(text)
    if manifest is None or text is None or (hash is not None and manifest.hash != hash):
        raise NoSuchStep(f"{store.url}: step {step} is not committed there")
    wanted = {
        path: record
        for path, record in manifest.files.items()
        if not served_only or path.startswith(SERVED)
    }
    if run.has(step):
        if run.manifest(step).hash == manifest.hash and _has_all(run, step, wanted):
            return manifest
        _displace(run, step, manifest.hash)
    staging = Staging(run, step, f"pull_{uuid.uuid4().hex[:12]}", rank=0)
    staging.create()
    try:
        pace, done, total = Pace(bytes_per_second, cancelled), 0, _size(wanted)
        for path, record in sorted(wanted.items()):
            _fetch(store, f"{home}/{path}", staging, path, record, pace)
            done += record.bytes
            if progress is not None:
                progress(done, total)
    except BaseException:
        staging.discard()
        raise
    try:
        adopt(staging, manifest, wanted)
    except CommitAborted:
        if not (run.has(step) and run.manifest(step).hash == manifest.hash):
            raise
        # Another process pulled the same step meanwhile.
    return manifest


def refresh(
    store: Store,
    run: Run,
    channel: str,
    *,
    bytes_per_second: float | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> ChannelRecord | None:
    """Brings the channel of `run`, and what it points at, to where it is in the store.

    The new record, None where nothing has changed. The step before, to which a replica would go
    back, comes with it when the run is empty.
    """
    newest = newest_channel(store, channel)
    local = read_channel(run, channel)
    if newest is None or (local is not None and local.generation >= newest.generation):
        return None
    for entry in [newest.entry, *newest.behind()[: 1 if local is None else 0]]:
        try:
            pull(
                store,
                run,
                entry.step,
                entry.hash,
                bytes_per_second=bytes_per_second if local is not None else None,
                cancelled=cancelled,
            )
        except NoSuchStep:
            if entry is newest.entry:  # it was pruned meanwhile, so there is a newer record
                raise
        if entry.generation == newest.generation:
            mirror_channel(run, newest)
    tidy(run)
    return newest


def tidy(run: Run) -> list[int]:
    """Removes copies that no channel points at, would go back to, or a live lease names."""
    from backends.checkpoint.retention import protected_steps

    with run.lock():
        doomed = [step for step in run.steps() if step not in protected_steps(run)]
        left = [trash.move(run, run.folder(step)) for step in doomed]
    trash.remove(run, left)
    return doomed


def prune_store(store: Store, *, keep: int) -> list[int]:
    """Deletes steps from the store but the `keep` newest, and what channels point at or would go
    back to. The manifest goes first: half a step is no step. Returns what went."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    steps = sorted(
        int(name.removeprefix("step-"))
        for name in store.names("ckpt")
        if name.startswith("step-") and name.removeprefix("step-").isdecimal()
    )
    kept = set(steps[-keep:])
    for channel in store.names("channels"):
        newest = newest_channel(store, channel)
        if newest is not None:
            kept |= {newest.step} | {entry.step for entry in newest.behind()[:1]}
    doomed = [step for step in steps if step not in kept]
    for step in doomed:
        home = f"ckpt/step-{step:08d}"
        store.delete(f"{home}/{NAME}")
        store.delete(home)
    return doomed


def _fetch(
    store: Store, key: str, staging: Staging, path: str, record: FileRecord, pace: Pace
) -> None:
    disk, target = staging.run.disk, staging.folder / path
    disk.make_folders(target.parent)
    whole = xxhash.xxh3_128()
    fd = disk.create(target)
    try:
        for block in store.read(key, record.bytes):
            pace.spend(len(block))
            whole.update(block)
            disk.write_all(fd, memoryview(block))
        disk.fsync(fd)
    finally:
        os.close(fd)
    if whole.hexdigest() != record.xxh3:
        raise Corrupt(key, f"xxh3 {record.xxh3}", f"xxh3 {whole.hexdigest()}")
    disk.fsync_path(target.parent)


def _has_all(run: Run, step: int, files: dict[str, FileRecord]) -> bool:
    folder = run.folder(step)
    try:
        return all((folder / path).stat().st_size == record.bytes for path, record in files.items())
    except OSError:
        return False


def _size(files: dict[str, FileRecord]) -> int:
    return sum(record.bytes for record in files.values())


def _displace(run: Run, step: int, hash: str) -> None:
    """A copy with less than is wanted now makes way; another run's step does not."""
    if run.manifest(step).hash != hash:
        raise StepExists(
            f"{run.root} holds another step {step}, of another run; empty this folder first"
        )
    with run.lock():
        if run.folder(step).name in claimed(run):
            raise StepExists(f"step {step} is in use in {run.root}; try again later")
        left = [trash.move(run, run.folder(step))]
    trash.remove(run, left)
