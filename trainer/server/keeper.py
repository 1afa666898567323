"""The run's weights at the server: what changes them, and what a checkpoint holds of them.

Owns the tensors, their average, the rule, the allotment and the arrival log, on one thread at a
time. It knows no socket. Invariant: weights, average, tickets and log always tell of the same
arrivals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.average import Average
from trainer.config import TrainConfig
from trainer.optim import Optimizer
from trainer.server.arrivals import Arrival
from trainer.server.rules import Applier, Descent, OneByOne, Rule, Together
from trainer.server.tickets import Desk, Progress, Terms, Ticket
from trainer.server.trail import Trail
from trainer.server.work import Workplace

# Tickets that a checkpoint can hold as open; each connection has one at most, and a round some.
OPEN = 1024


def terms(config: TrainConfig) -> Terms:
    sync = config.sync
    return Terms(
        batch=config.data.batch_size,
        parts=sync.round_parts,
        every=sync.every,
        end=config.steps * config.data.batch_size,
        staleness=None if sync.staleness < 0 else sync.staleness,
        lease_s=sync.lease_s,
        scaled=sync.scale_steps,
    )


@dataclass(frozen=True, slots=True)
class Applied:
    """What one change of the weights was made of."""

    tickets: list[Ticket]
    norm: float


class Keeper:
    """See `sync.method.Method` for what it is to checkpoints."""

    own = ""
    exchanged = 0

    def __init__(self, config: TrainConfig, place: Workplace) -> None:
        self._config, self._place = config, place
        self._terms = terms(config)
        self.optimizer, rule = make_rule(config, place)
        self._rule = rule
        self._trail = make_trail(config, place)
        self._applier = make_applier(config, place, rule, self._trail)
        self.desk = Desk(self._terms)
        # Row 0: next ticket, its position, samples applied, version, arrivals. Then open tickets.
        self._table = torch.zeros(OPEN + 1, 5, dtype=torch.int64)
        self.arrivals = 0
        self._held: dict[int, Arrival] = {}
        self._packed: tuple[int, Tensor] | None = None

    @property
    def version(self) -> int:
        return self._applier.version

    @property
    def average(self) -> Average | None:
        return None if self._trail is None else self._trail.average

    @property
    def samples(self) -> int:
        return self.desk.samples

    def packed(self) -> tuple[int, Tensor]:
        """The version and the weights as they travel; made once a version."""
        if self._packed is None or self._packed[0] != self.version:
            packed = self._place.weights.pack(self._place.tensors)
            self._packed = (self.version, packed)
        return self._packed

    @property
    def contribution_bytes(self) -> int:
        return self._place.sent.nbytes

    def hold(self, arrival: Arrival) -> None:
        """Until it is applied."""
        self._held[arrival.ticket.number] = arrival

    def change(self, ticket: Ticket, packed: Tensor) -> Applied:
        """The weights, by a contribution; not yet, as long as other parts of its round lack. This
        touches weights only, so it may run beside what the event loop does with tickets."""
        tickets, norm = self._applier.arrive(ticket, dict(self._place.sent.views(packed)))
        return Applied(tickets, norm)

    def note(self, tickets: list[Ticket]) -> list[Arrival]:
        """What was applied; returns the arrivals, in their order."""
        for ticket in tickets:
            self.desk.applied(ticket)
        self.arrivals += len(tickets)
        return [self._held.pop(ticket.number) for ticket in tickets]

    def prepare_commit(self) -> None:
        """Writes down where tickets and log are."""
        progress = self.desk.progress()
        head = (progress.number, progress.position, progress.samples, self.version, self.arrivals)
        rows = [head, *(ticket.row for ticket in progress.open)]
        self._table.zero_()
        self._table[: len(rows)] = torch.tensor(rows, dtype=torch.int64)

    # ------------------------------------------------------------ as a method of synchronisation

    def before_backward(self, last: bool) -> None:
        pass

    def after_backward(self) -> None:
        pass

    def after_step(self, step: int) -> None:
        pass

    @contextmanager
    def agreed(self) -> Iterator[None]:
        yield

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def tensors(self) -> Mapping[str, Tensor]:
        return {"sync.tickets": self._table, **self._rule.state}

    def resume(self, step: int, exact: bool) -> None:
        """After loading. A checkpoint of another method says how many steps were done, no more."""
        number, position, samples, version, arrivals = self._table[0].tolist()
        rows = [row for row in self._table[1:].tolist() if row[2]]
        progress = Progress(number, position, samples, [Ticket(*row) for row in rows])
        if not exact:
            position = step * self._config.data.batch_size
            number = step // self._config.sync.every * self._terms.parts
            progress, version, arrivals = Progress(number, position, position), 0, 0
        self.desk = Desk(self._terms, progress)
        if self._trail is not None:
            self._trail.samples = progress.samples
        self._applier.version, self.arrivals = version, arrivals
        self._packed = None


def make_rule(config: TrainConfig, place: Workplace) -> tuple[Optimizer, Rule]:
    sync = config.sync
    if sync.carries == "gradients":
        optimizer = Optimizer(dict(place.parameters), config.optimizer)
        return optimizer, Descent(sync.round_parts, optimizer, config.optimizer, place.rate)
    kind = OneByOne if sync.staleness else Together
    parameters = {name: p.detach() for name, p in place.parameters.items()}
    rule: Rule = kind(sync.round_parts, parameters, sync.outer_lr, sync.outer_momentum)
    return Optimizer({}, config.optimizer), rule


def make_trail(config: TrainConfig, place: Workplace) -> Trail | None:
    decay = config.optimizer.ema
    if decay is None:
        return None
    average = Average(place.parameters, decay, place.parallel.objective)
    return Trail(average, config.data.batch_size)


def make_applier(config: TrainConfig, place: Workplace, rule: Rule, trail: Trail | None) -> Applier:
    parts = config.sync.round_parts
    return Applier(rule, lambda ticket: ticket.number // parts, place.buffers, trail)
