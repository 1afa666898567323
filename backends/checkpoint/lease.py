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

from backends.checkpoint.errors import BadRecord, NoSuchStep
from backends.checkpoint.liveness import Life
from backends.checkpoint.manifest import NAME
from backends.checkpoint.records import read_record, seal
from backends.checkpoint.run import Run

TTL_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    file: str
    kind: str  # "reader" or "writer"
    holder: str
    target: str  # a folder's name in <run>/ckpt
    ttl_s: float
    beat: int
    life: Life
    at: float


class Lease:
    """One claim; a context manager that beats from a thread of its own while it is held."""

    def __init__(self, run: Run, kind: str, holder: str, target: str, ttl_s: float = TTL_S) -> None:
        if not _NAME.fullmatch(holder):
            raise BadRecord(f"{holder!r} cannot name a lease: use letters, digits and . _ -")
        if not 1 <= ttl_s <= 86_400:
            raise BadRecord("ttl_s must be between a second and a day")
        self._run, self._kind, self._holder, self._target = run, kind, holder, target
        self._ttl, self._beats = ttl_s, 0
        self.path = run.leases / f"{kind}-{holder}-{uuid.uuid4().hex[:12]}.json"
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
        """Writes the record anew, also when somebody took the lease for dead."""
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
            self._run.disk.write_file(self.path, seal(record))

    def release(self) -> None:
        """Idempotent."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock, suppress(FileNotFoundError):
            self._run.disk.unlink(self.path)

    def _keep(self) -> None:
        # Three beats a life: one may be lost to a slow disk.
        while not self._stop.wait(self._ttl / 3):
            # A full disk must not end the reading; on this machine the process's life counts.
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
        super().acquire()
        # Record first, then look: retention moves a step away first, then looks for leases, so at
        # least one of the two sees the other.
        if not (self._run.folder(self.step) / NAME).is_file():
            self.release()
            raise NoSuchStep(f"step {self.step} is not committed in {self._run.root}")
        return self


def live_leases(run: Run) -> list[LeaseRecord]:
    """Every lease that may be live; one whose record is damaged counts as none."""
    return [record for record, live in _judged(run) if live]


def reap(run: Run) -> None:
    """Removes the records of dead leases."""
    for record, live in _judged(run):
        if not live:
            with suppress(FileNotFoundError):
                run.disk.unlink(run.leases / record.file)


def _judged(run: Run) -> list[tuple[LeaseRecord, bool]]:
    """Each lease with whether it is live. Remembers the heartbeats of those it cannot see."""
    memory = run.leases / f".seen-{run.host.boot() or 'unknown'}"
    seen = _memory(memory)
    now, kept, judged = run.host.uptime(), {}, []
    for path in sorted(run.leases.glob("*.json")):
        record = _record(path)
        if record is None:
            continue
        live = run.host.alive(record.life)
        if live is None:
            beat, since = seen.get(record.file, (None, now))
            since = since if beat == record.beat else now
            kept[record.file] = [record.beat, since]
            live = now - since < record.ttl_s
        judged.append((record, live))
    if kept != {file: list(value) for file, value in seen.items()}:
        with suppress(OSError):  # forgetting makes leases live longer, nothing worse
            run.disk.write_file(memory, seal({"seen": kept}))
    return judged


def _memory(path: Path) -> dict[str, tuple[int, float]]:
    try:
        record: dict[str, Any] = read_record(path) or {}
        return {file: (int(beat), float(since)) for file, (beat, since) in record["seen"].items()}
    except (BadRecord, KeyError, TypeError, ValueError):
        return {}


def _record(path: Path) -> LeaseRecord | None:
    try:
        value = read_record(path)
        if value is None:
            return None
        life = Life(**value.pop("life"))
        return LeaseRecord(file=path.name, life=life, **value)
    except (BadRecord, TypeError, KeyError):
        return None
