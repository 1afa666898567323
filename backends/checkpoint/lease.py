"""Leases: a process's claim on a step (a reader) or on a staging folder (a writer).

Owns the records in `<run>/leases` and the judgement whether one is live. Invariant: no clock that
anybody can set takes part: where the kernel knows the process, its life decides; elsewhere a lease
is dead once its heartbeat stood still for its whole `ttl_s` of the judge's own uptime.
"""

from __future__ import annotations

import re
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from backends.checkpoint.errors import BadRecord, CheckpointError, NoSuchStep
from backends.checkpoint.liveness import Life
from backends.checkpoint.records import read_record, seal
from backends.checkpoint.run import Run

TTL_S = 60.0
MAX_TTL_S = 86_400.0
MEMORY = ".seen-"
# Judges on that many boots of that many machines may remember heartbeats in one run.
MAX_MEMORIES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease as found. A damaged record still tells its kind, holder and target by the file's
    name; its `life` is None, and its `beat` is when the file changed."""

    file: str
    kind: str  # "reader" or "writer"
    holder: str
    target: str  # a folder's name in <run>/ckpt
    ttl_s: float
    beat: int
    life: Life | None
    at: float | None


class Lease:
    """One claim; a context manager that beats from a thread of its own while it is held."""

    def __init__(self, run: Run, kind: str, holder: str, target: str, ttl_s: float = TTL_S) -> None:
        if not _NAME.fullmatch(holder):
            raise BadRecord(f"{holder!r} cannot name a lease: use letters, digits and . _ -")
        if not 1 <= ttl_s <= MAX_TTL_S:
            raise BadRecord("ttl_s must be between a second and a day")
        self._run, self._kind, self._holder, self._target = run, kind, holder, target
        self._ttl, self._beats = ttl_s, 0
        self.path = run.leases / f"{kind}~{holder}~{target}~{uuid.uuid4().hex[:12]}.json"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def acquire(self) -> Self:
        self._run.disk.make_folders(self._run.leases)
        self.beat()
        self._thread = threading.Thread(target=self._keep, name=self.path.stem, daemon=True)
        self._thread.start()
        return self

    def beat(self) -> None:
        """Writes the record anew, also when somebody took the lease for dead; nothing once it is
        released."""
        with self._lock:
            if self._stop.is_set():
                return
            self._beats += 1
            record = {
                "kind": self._kind,
                "holder": self._holder,
                "target": self._target,
                "ttl_s": self._ttl,
                "beat": self._beats,
                "life": asdict(self._run.host.life()),
                "at": self._run.host.wall(),
            }
            # Not synced: no lease outlives the power.
            self._run.disk.write_file(self.path, seal(record), durable=False)

    def release(self) -> None:
        """Idempotent. If the disk refuses, the lease lasts as long as this process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        with self._lock, suppress(OSError):
            self._run.disk.unlink(self.path)

    def _keep(self) -> None:
        # Three beats a life: one may be lost to a slow disk.
        while not self._stop.wait(self._ttl / 3):
            # A full disk must not end the reading; the next beat may succeed.
            with suppress(OSError):
                self.beat()

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class ReaderLease(Lease):
    """Keeps retention away from `step` while `reader` reads it.

    Raises NoSuchStep on entry when the step is not there (any more).
    """

    def __init__(self, run: Run, step: int, reader: str, *, ttl_s: float = TTL_S) -> None:
        super().__init__(run, "reader", reader, run.folder(step).name, ttl_s)
        self.step = step

    def acquire(self) -> Self:
        run = self._run
        if run.ckpt.is_dir():
            super().acquire()
            # Record first, then look under the lock: a pruner that missed the record may have the
            # step in its hands until it sees it, and puts it back before it lets go of the lock.
            with run.lock():
                if run.has(self.step):
                    return self
            self.release()
        raise NoSuchStep(f"step {self.step} is not committed in {run.root}")


def live_leases(run: Run) -> list[LeaseRecord]:
    """Every lease that may be live; in doubt it is."""
    return [record for record, live in _judged(run) if live]


def claimed(run: Run) -> set[str]:
    """The folders in <run>/ckpt that live leases name."""
    return {record.target for record in live_leases(run)}


def reap(run: Run) -> None:
    """Removes what dead processes left in the leases folder."""
    for record, live in _judged(run):
        if not live:
            with suppress(OSError):
                run.disk.unlink(run.leases / record.file)
    # To forget a heartbeat only makes a lease live longer.
    others = set(run.leases.glob(f"{MEMORY}*")) - {_memory_file(run)}
    for memory in sorted(others)[MAX_MEMORIES:]:
        with suppress(OSError):
            run.disk.unlink(memory)


def _judged(run: Run) -> list[tuple[LeaseRecord, bool]]:
    """Each lease with whether it is live. Remembers the heartbeats of those it cannot see."""
    memory = _memory_file(run)
    seen = _memory(memory)
    now = run.host.uptime()
    kept: dict[str, tuple[int, float]] = {}
    judged = []
    for path in sorted(run.leases.glob("*")):
        if path.name.startswith(MEMORY):
            continue
        record = _record(path)
        if record is None:
            continue
        live = run.host.alive(record.life) if record.life else None
        if live is None:
            beat, since = seen.get(record.file, (record.beat, now))
            # An uptime later than now was not measured since this boot.
            kept[record.file] = (
                record.beat,
                since if beat == record.beat and since <= now else now,
            )
            live = now - kept[record.file][1] < record.ttl_s
        judged.append((record, live))
    if kept != seen:
        with suppress(OSError):  # not remembering makes leases live longer, nothing worse
            run.disk.write_file(memory, seal({"seen": kept}), durable=False)
    return judged


def _memory_file(run: Run) -> Path:
    return run.leases / f"{MEMORY}{run.host.boot() or 'unknown'}"


def _memory(path: Path) -> dict[str, tuple[int, float]]:
    try:
        record: dict[str, Any] = read_record(path) or {"seen": {}}
        return {file: (int(beat), float(since)) for file, (beat, since) in record["seen"].items()}
    except (CheckpointError, KeyError, TypeError, ValueError):
        return {}


def _record(path: Path) -> LeaseRecord | None:
    """None if the file has gone meanwhile."""
    try:
        value = read_record(path)
        if value is None:
            return None
        life = Life(**value.pop("life"))
        return LeaseRecord(file=path.name, life=life, **value)
    except (CheckpointError, TypeError, KeyError):
        return _damaged(path)


def _damaged(path: Path) -> LeaseRecord | None:
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return None
    kind, holder, target = (*path.name.split("~"), "", "", "")[:3]
    return LeaseRecord(path.name, kind, holder, target, MAX_TTL_S, changed, None, None)
