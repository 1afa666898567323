"""What the batcher takes and gives: items, knobs, refusals and plans."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar


class Item(Protocol):
    """What waits. Times are absolute, in seconds; none of these may change while it waits."""

    @property
    def rows(self) -> int: ...
    @property
    def arrived(self) -> float: ...
    @property
    def deadline(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def key(self) -> Hashable: ...


T = TypeVar("T", bound=Item)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingKnobs:
    """`max_batch_size`, `max_queue`: rows. `slo_s`: the usual deadline, from which holding and
    giving up are weighed; None runs whatever waits. `hold=False` never waits for a fuller batch.
    `overhead_s`: what a batch takes beyond its service time, from here and back to the client.
    `patience_s`: an item without a deadline is as urgent as one due this long after its arrival.
    `cost`: what an item counts in a batch's budget `max_cost`; then curves are over cost."""

    max_batch_size: int
    slo_s: float | None = None
    max_queue: int = 4096
    hold: bool = True
    overhead_s: float = 0.0005
    patience_s: float = 1.0
    cost: Callable[[Any], int] | None = None
    max_cost: int | None = None

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError("max_batch_size must be at least 1")
        if self.max_queue < self.max_batch_size:
            raise ValueError("max_queue must be at least max_batch_size")
        if self.slo_s is not None and self.slo_s <= 0:
            raise ValueError("slo_s must be positive")
        if self.overhead_s < 0:
            raise ValueError("overhead_s must not be negative")
        if self.patience_s <= 0:
            raise ValueError("patience_s must be positive")
        if (self.cost is None) != (self.max_cost is None):
            raise ValueError("cost and max_cost go together")
        if self.max_cost is not None and self.max_cost < 1:
            raise ValueError("max_cost must be at least 1")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an item was not taken in: "queue_full", "too_late" or "too_large". `retry_after`:
    seconds until what waits now has drained, None while no drain rate is known."""

    retry_after: float | None
    reason: str


class Plan(NamedTuple, Generic[T]):
    """`batch` runs now (may be empty); `dropped` can no longer be met. Both have left the batcher.
    Ask again at `wake` if nothing happens before; None: when an item comes or a slot frees.

    `reason`, of a batch: "all" that waits, "full", "sized" (what the deadline or the curve makes
    best), "probe" (none can be met, says the curve; tried all the same). Of none: "empty", "busy"
    (no slot, or work ahead), "hold", "unaccepted", "late" (all were dropped).
    """

    batch: list[T]
    reason: str
    dropped: list[T]
    wake: float | None
