"""What the ranks tell each other at every step, in one small all-reduce.

Owns the vector: the gradient's norm, who wants to stop, whose commit failed, the loss and the
metrics. So every rank knows the same numbers and takes the same decisions at the same step. On a
GPU a reading comes one step late, as waiting for the device would leave it idle. Invariant: all
ranks read the same values for the same step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.errors import BadPlugin

NORM, STOP, FAILED, LOSS, METRICS = 0, 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Reading:
    """One step, over all ranks."""

    step: int
    loss: float
    metrics: Mapping[str, float]
    norm: float
    stop: bool
    failed: bool

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Totals:
    """The weighted loss and metrics of the pieces of one step, still on the device."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}

    def add(self, loss: Tensor, metrics: Mapping[str, Tensor], weight: float) -> None:
        """Raises BadPlugin for what is no scalar."""
        for name, value in (("loss", loss), *metrics.items()):
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise BadPlugin(f"model.class: loss(batch) must give scalars; {name} is none")
            if name == "loss" and value is not loss:
                raise BadPlugin('model.class: loss(batch) names a metric "loss"; rename it')
            share = value.detach().reshape(()).double() * weight
            known = self.values.get(name)
            self.values[name] = share if known is None else known + share


@dataclass(frozen=True, slots=True)
class Apart:
    """Replicas that tell each other only every so many steps; within each, the ranks always do."""

    every: int
    replicas: int
    ranks: int  # of each replica
    within: dist.ProcessGroup | None
    between: dist.ProcessGroup | None


class Pulse:
    """Sends and reads the vector. `copies` is how many ranks hold the same gradient shard.

    Replicas that are `apart` have a norm each, by which they clip; what is read is the root of the
    mean square.
    """

    def __init__(
        self, ranks: int, copies: int, device: torch.device, apart: Apart | None = None
    ) -> None:
        self._ranks, self._copies, self._device = ranks, copies, device
        self._apart = apart
        self._lag = device.type != "cpu" and apart is None
        self._unshared: list[tuple[int, Tensor]] = []
        self._names: tuple[str, ...] | None = None
        self._unread: deque[tuple[int, Tensor]] = deque()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what the model reports, known after the first beat."""
        return self._names or ()

    def beat(self, step: int, squares: Tensor, totals: Totals, stop: bool, failed: bool) -> Tensor:
        """Collective. Returns the norm of the whole gradient, on the device."""
        names = tuple(sorted(set(totals.values) - {"loss"}))
        if self._names is None:
            self._names = names
        if names != self._names:
            raise BadPlugin(f"model.class: the metrics changed from {self._names} to {names}")
        flags = torch.tensor([stop, failed], dtype=torch.float64, device=self._device)
        vector = torch.stack(
            [squares / self._copies, *flags, totals.values["loss"]]
            + [totals.values[name] for name in names]
        )
        if self._apart is None:
            if self._ranks > 1:
                dist.all_reduce(vector)
            self._unread.append((step, vector))
            return vector[NORM].sqrt()
        if self._apart.ranks > 1:
            dist.all_reduce(vector, group=self._apart.within)
        self._unshared.append((step, vector))
        return vector[NORM].sqrt()

    def _share(self, apart: Apart) -> None:
        """Between replicas, for all steps since the last time."""
        steps = [step for step, _ in self._unshared]
        vectors = torch.stack([vector for _, vector in self._unshared])
        if apart.replicas > 1:
            dist.all_reduce(vectors, group=apart.between)
        vectors[:, NORM] /= apart.replicas
        self._unread.extend(zip(steps, vectors, strict=True))
        self._unshared.clear()

    def readings(self, *, all: bool = False) -> Iterator[Reading]:
        """What has not been read yet, oldest first; `all` waits for the newest too. Collective."""
        if self._apart is not None and self._unshared:
            newest, _ = self._unshared[-1]
            if all or newest % self._apart.every == 0:
                self._share(self._apart)
        while len(self._unread) > (0 if all or not self._lag else 1):
            step, vector = self._unread.popleft()
            values = vector.tolist()
            yield Reading(
                step=step,
                loss=values[LOSS],
                metrics=dict(zip(self.metrics, values[METRICS:], strict=True)),
                norm=math.sqrt(values[NORM]) if values[NORM] >= 0 else math.nan,
                stop=values[STOP] > 0,
                failed=values[FAILED] > 0,
            )
