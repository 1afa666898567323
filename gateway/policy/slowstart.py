"""Slow start: how much of its weight a new or recovered replica is given, by its age.

A replica that has just started has cold caches, unwarmed kernels and no measured speed; full
traffic at once makes the first seconds its worst. Pure arithmetic; the load keeps the age.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowStart:
    """The factor is `max(floor, (age / window_s) ** (1 / aggression))`, and 1 from `window_s` on.

    The form is Envoy's. `floor` keeps the replica in the running: with none, its first request
    would wait for ever. `aggression` above 1 gives weight back sooner. `window_s` 0 turns it off.
    """

    window_s: float = 10.0
    floor: float = 0.1
    aggression: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.window_s < float("inf"):
            raise ValueError(f"window_s must be finite and not negative, not {self.window_s}")
        if not 0.0 < self.floor <= 1.0:
            raise ValueError(f"floor must be above 0 and at most 1, not {self.floor}")
        if not self.aggression > 0.0:
            raise ValueError(f"aggression must be above 0, not {self.aggression}")

    def factor(self, age: float) -> float:
        if age >= self.window_s:
            return 1.0
        return float(max(self.floor, (max(age, 0.0) / self.window_s) ** (1.0 / self.aggression)))
