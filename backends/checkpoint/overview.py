"""What people ask about a run: its checkpoints in rows, and why each is kept.

Changes nothing. Cheap: sizes, no bytes; `verify` has the bytes, `prunable` the plan of a prune.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.checkpoint.channel import channel_names, read_channel
from backends.checkpoint.errors import CheckpointError
from backends.checkpoint.integrity import check_folder
from backends.checkpoint.lease import LeaseRecord, live_leases
from backends.checkpoint.manifest import Manifest
from backends.checkpoint.quarantine import is_quarantined
from backends.checkpoint.run import Run


@dataclass(frozen=True, slots=True)
class StepRow:
    """One committed step. `uses` says who needs it: "LATEST", "channel stable", "rollback of
    stable", "reader digits-0"; `problem` is why it is not whole, as far as sizes tell."""

    step: int
    version: str | None
    bytes: int
    created: str | None
    position: int | None
    evaluation: Mapping[str, float]
    uses: tuple[str, ...]
    quarantined: bool
    problem: str | None


def overview(run: Run) -> list[StepRow]:
    """Every committed step, ascending."""
    leases = live_leases(run)
    return [_row(run, step, leases) for step in run.steps()]


def _row(run: Run, step: int, leases: list[LeaseRecord]) -> StepRow:
    manifest: Manifest | None = None
    problem = None
    try:
        manifest = run.manifest(step)
        check_folder(run.folder(step), manifest, every_byte=False)
    except CheckpointError as error:
        problem = f"{error.code}: {error}"
    return StepRow(
        step=step,
        version=manifest.version if manifest else None,
        bytes=manifest.total if manifest else 0,
        created=manifest.created if manifest else None,
        position=manifest.position if manifest else None,
        evaluation=manifest.evaluation if manifest else {},
        uses=tuple(_uses(run, step, leases)),
        quarantined=manifest is not None and is_quarantined(run, manifest.hash),
        problem=problem,
    )


def _uses(run: Run, step: int, leases: list[LeaseRecord]) -> list[str]:
    uses = []
    try:
        pointer = run.pointer()
        if pointer is not None and pointer[0] == step:
            uses.append("LATEST")
    except CheckpointError as error:
        uses.append(f"LATEST? ({error.code})")
    for name in channel_names(run):
        try:
            channel = read_channel(run, name)
        except CheckpointError as error:
            uses.append(f"channel {name}? ({error.code})")
            continue
        if channel is not None and channel.step == step:
            uses.append(f"channel {name}")
        if channel is not None and step in [entry.step for entry in channel.behind()[:1]]:
            uses.append(f"rollback of {name}")
    target = run.folder(step).name
    return uses + [f"{lease.kind} {lease.holder}" for lease in leases if lease.target == target]
