"""Publishing: a committed version goes to a channel, if the gate lets it, and then to a store.

Owns the order: gate, then the channel, which verifies every byte itself, then the store. Invariant:
a version that the gate refuses leaves the channel as it was, and a store that fails undoes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.checkpoint import ChannelRecord, CheckpointError, Run, publish, read_channel
from backends.checkpoint.mirror import push
from backends.checkpoint.objects import Store
from trainer.config import TrainConfig
from trainer.errors import GateRefused
from trainer.gate import Gate


def publish_step(run: Run, step: int, channel: str, gate: Gate) -> tuple[ChannelRecord, bool]:
    """The channel's record, and whether it changed. Raises GateRefused or a CheckpointError."""
    manifest = run.manifest(step)
    gate.check(manifest.evaluation)
    current = read_channel(run, channel)
    if current is not None and current.hash == manifest.hash:
        return current, False
    return publish(run, channel, step), True


@dataclass(frozen=True, slots=True)
class Published:
    """What became of it: for people, and for the journal (events with their fields)."""

    text: str
    events: tuple[tuple[str, Mapping[str, Any]], ...] = ()


class Publisher:
    """What [publish] asks for, on rank 0."""

    def __init__(self, run: Run, config: TrainConfig) -> None:
        self._run, self._steps, self._config = run, config.steps, config.publish

    def due(self, step: int) -> bool:
        """Whether a version in the middle of the run is to be published."""
        every = self._config.every
        return every is not None and step % every == 0 and step < self._steps

    def publish(self, step: int) -> Published:
        """Raises CheckpointError when the checkpoint is not as it was committed."""
        config = self._config
        if config.channel is None:
            return Published("none (publish.channel names none)")
        if step > self._steps:
            return Published(f"{config.channel} stays: step {step} is past steps = {self._steps}")
        try:
            record, changed = publish_step(self._run, step, config.channel, config.require)
        except GateRefused as error:
            why = {"channel": config.channel, "reason": str(error)}
            text = f"{config.channel} stays as it was: {error}"
            return Published(text, (("not_published", why),))
        fields = {"channel": record.name, "generation": record.generation, "step": step}
        text = f"{record.name}, generation {record.generation}" + (
            "" if changed else " (as before)"
        )
        told = Published(text, (("published", fields),))
        return told if config.store is None else self._pushed(told, record.name, config.store)

    def _pushed(self, told: Published, channel: str, store: str) -> Published:
        """`trainer push` tries again what fails here."""
        try:
            push(self._run, channel, Store(store, **self._config.store_options))
        except CheckpointError as error:
            event = ("not_pushed", {"store": store, "reason": str(error)})
            return Published(f"{told.text}; NOT in {store}: {error}", (*told.events, event))
        event = ("pushed", {"store": store, "channel": channel})
        return Published(f"{told.text}; and in {store}", (*told.events, event))
