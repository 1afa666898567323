"""The moving average at a server: what it follows, step by step, whatever portions changes come in.

Owns when the average moves. A change of the weights may end several steps of the run, or none yet:
through all of them but the last, the weights stood as they were before it. So the average is that
of a run whose replicas exchange as rarely (`sync.accumulate`). Invariant: it moves once for every
step, and is a function of the changes and their order.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.average import Average
from trainer.server.tickets import Ticket


class Trail:
    """`batch` is a step's samples; `samples` counts those that were applied."""

    def __init__(self, average: Average, batch: int) -> None:
        self.average, self._batch, self.samples = average, batch, 0
        self._ends = False

    def before(self, tickets: Sequence[Ticket]) -> None:
        """The weights are about to change by these."""
        step = self.samples // self._batch
        self.samples += sum(ticket.total for ticket in tickets)
        last = self.samples // self._batch
        self._ends = last > step
        if last > step + 1:
            self.average.update(step + 1, last - 1)

    def after(self) -> None:
        """They have changed."""
        if self._ends:
            self.average.update(self.samples // self._batch)
