"""A run's folder: where things are, which steps are committed, which of them is the newest whole.

Owns the layout and views of it; everything that changes it is elsewhere. Invariant: `latest`
returns only a checkpoint whose every byte is as committed (or, if asked, every size).

    <run>/ckpt/.staging-<step>-<attempt>/   being written; invisible
    <run>/ckpt/step-<step>/                 immutable: model/, state/, MANIFEST.json
    <run>/ckpt/LATEST                       step and hash of the last commit
    <run>/channels/ leases/ quarantine/     records
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from backends.checkpoint.disk import Disk, locked
from backends.checkpoint.errors import BadRecord, CheckpointError, NoSuchStep
from backends.checkpoint.integrity import check_folder
from backends.checkpoint.liveness import Host
from backends.checkpoint.manifest import MAX_BYTES, NAME, Manifest
from backends.checkpoint.records import read_bounded, read_record

_STEP = re.compile(r"step-(\d{8,12})")


@dataclass(frozen=True)
class Run:
    root: Path
    disk: Disk = field(default_factory=Disk, repr=False, compare=False)
    host: Host = field(default_factory=Host, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A folder of its own, whatever a process's working folder becomes.
        object.__setattr__(self, "root", Path(self.root).absolute())

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def ckpt(self) -> Path:
        return self.root / "ckpt"

    @property
    def channels(self) -> Path:
        return self.root / "channels"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def lock(self) -> AbstractContextManager[None]:
        """Excludes all others that make steps visible, move channels or remove anything. Held for
        a few small operations only, never while tensors are read or written."""
        self.disk.make_folders(self.root)
        return locked(self.root / ".lock")

    def folder(self, step: int) -> Path:
        return self.ckpt / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Committed steps, ascending; nothing is said of their bytes."""
        try:
            names = [path.name for path in self.ckpt.iterdir()]
        except FileNotFoundError:
            return []
        found = (_STEP.fullmatch(name) for name in names)
        steps = {int(match[1]) for match in found if match}
        return sorted(step for step in steps if self.has(step))

    def has(self, step: int) -> bool:
        """Whether the step is committed: there is a manifest, or no telling."""
        try:
            return (self.folder(step) / NAME).is_file()
        except OSError:
            return True

    def manifest(self, step: int, *, hash: str | None = None) -> Manifest:
        """The step's manifest, which must have this `hash` (None: any).

        Raises NoSuchStep, also for another hash; BadRecord when it cannot be trusted; Unreadable.
        """
        data = read_bounded(self.folder(step) / NAME, MAX_BYTES)
        if data is None:
            raise NoSuchStep(f"step {step} is not committed in {self.root}")
        manifest = Manifest.parse(data)
        if manifest.step != step:
            raise BadRecord(f"the manifest in step {step} says it is step {manifest.step}")
        if hash is not None and manifest.hash != hash:
            raise NoSuchStep(f"step {step} has manifest {manifest.hash}, not {hash}")
        return manifest

    def pointer(self) -> tuple[int, str] | None:
        """Step and hash in LATEST, None if there is none. Raises BadRecord or Unreadable."""
        record = read_record(self.ckpt / "LATEST")
        if record is None:
            return None
        step, hash = record.get("step"), record.get("hash")
        if not isinstance(step, int) or not isinstance(hash, str):
            raise BadRecord("LATEST must hold step and hash")
        return step, hash

    def latest(self, *, every_byte: bool = True) -> Manifest | None:
        """The newest whole checkpoint, None if there is none; others are passed over.

        The folders decide, not LATEST: a crash may have come between the two. Quarantine does not
        count: it says what not to serve. `every_byte=False` trusts files of the right size.
        """
        for step in reversed(self.steps()):
            try:
                manifest = self.manifest(step)
                check_folder(self.folder(step), manifest, every_byte=every_byte)
            except CheckpointError:
                continue
            return manifest
        return None
