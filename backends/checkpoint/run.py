"""A run's folder: where things are, which steps are committed, which of them is the newest whole.

Owns the layout and read-only views of it; everything that changes it is elsewhere. Invariant:
`latest` returns only a checkpoint whose every byte is as committed (or, if asked, every size).

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
        object.__setattr__(self, "root", Path(self.root))

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
        """Excludes every other process that commits, publishes or prunes in this run."""
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
        steps = sorted(int(match[1]) for match in found if match)
        return [step for step in steps if (self.folder(step) / NAME).is_file()]

    def manifest(self, step: int) -> Manifest:
        """Raises NoSuchStep, or BadRecord when the manifest cannot be trusted."""
        data = read_bounded(self.folder(step) / NAME, MAX_BYTES)
        if data is None:
            raise NoSuchStep(f"step {step} is not committed in {self.root}")
        manifest = Manifest.parse(data)
        if manifest.step != step:
            raise BadRecord(f"the manifest in step {step} says it is step {manifest.step}")
        return manifest

    def pointer(self) -> tuple[int, str] | None:
        """Step and hash in LATEST, None if there is none. Raises BadRecord."""
        record = read_record(self.ckpt / "LATEST")
        if record is None:
            return None
        step, hash = record.get("step"), record.get("hash")
        if not isinstance(step, int) or not isinstance(hash, str):
            raise BadRecord("LATEST must hold step and hash")
        return step, hash

    def latest(self, *, every_byte: bool = True) -> Manifest | None:
        """The newest whole checkpoint, None if there is none; broken ones are passed over.

        `every_byte=False` trusts files that exist with the right size.
        """
        from backends.checkpoint.verify import verify

        for step in reversed(self.steps()):
            try:
                return verify(self, step, every_byte=every_byte)
            except CheckpointError:
                continue
        return None
