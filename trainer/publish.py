"""Publishing: a committed version goes to a channel, if the gate lets it.

Owns the order: gate, then the channel, which verifies every byte itself. Invariant: a version that
the gate refuses leaves the channel as it was.
"""

from __future__ import annotations

from backends.checkpoint import ChannelRecord, Run, publish, read_channel
from trainer.gate import Gate


def publish_step(run: Run, step: int, channel: str, gate: Gate) -> tuple[ChannelRecord, bool]:
    """The channel's record, and whether it changed. Raises GateRefused or a CheckpointError."""
    manifest = run.manifest(step)
    gate.check(manifest.evaluation)
    current = read_channel(run, channel)
    if current is not None and current.hash == manifest.hash:
        return current, False
    return publish(run, channel, step), True
