"""Tickets: which samples a worker takes next, and how far ahead of the slowest it may be.

Owns the allotment. A ticket is a stretch of the sample order; so many of them make a round. Stale
synchronous parallel (Ho et al., 2013): a ticket of round r is given out once every round before
r − staleness is applied. Pure: `now` comes in, and it knows no socket. Invariant: every sample is
in exactly one ticket, and every ticket is applied exactly once, whoever dies holding it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field

# How much a worker's last ticket tells about its speed.
_NEWEST = 0.5


@dataclass(frozen=True, slots=True, order=True)
class Ticket:
    """`steps` local steps of `samples` each, from `position`; the first counts as `first_step`."""

    number: int
    position: int
    steps: int
    samples: int
    first_step: int

    @property
    def total(self) -> int:
        return self.steps * self.samples

    @property
    def row(self) -> tuple[int, ...]:
        return astuple(self)


@dataclass(frozen=True, slots=True)
class Terms:
    """How a run is cut into tickets. `staleness` None: no bound."""

    batch: int
    parts: int
    every: int
    end: int
    staleness: int | None = 0
    lease_s: float = 10.0
    scaled: bool = False


@dataclass(slots=True)
class Progress:
    """What is allotted and what is applied; `open` holds the tickets between the two."""

    number: int = 0
    position: int = 0
    samples: int = 0
    open: list[Ticket] = field(default_factory=list)


@dataclass(slots=True)
class _Holder:
    ticket: Ticket
    until: float


class Desk:
    """Gives tickets out and takes them back. A worker holds one at most."""

    def __init__(self, terms: Terms, progress: Progress | None = None) -> None:
        found = progress or Progress()
        self._terms = terms
        self._number, self._position = found.number, found.position
        self.samples = found.samples
        self._returned = sorted(found.open)  # a heap
        self._held: dict[str, _Holder] = {}
        self._received: dict[int, Ticket] = {}
        self._speeds: dict[str, float] = {}

    @property
    def done(self) -> bool:
        return self._position >= self._terms.end and not self._open()

    def progress(self) -> Progress:
        """For a checkpoint. What was received but not applied will be computed again."""
        return Progress(self._number, self._position, self.samples, self._open())

    def ask(self, worker: str, now: float) -> Ticket | None:
        """The worker's next ticket, or None as long as it must wait (or for ever, when `done`)."""
        assert worker not in self._held, "a worker holds one ticket at a time"
        ticket = self._returned[0] if self._returned else self._next(worker)
        if ticket is None or not self._allowed(ticket):
            return None
        if self._returned:
            heapq.heappop(self._returned)
        else:
            self._number, self._position = ticket.number + 1, ticket.position + ticket.total
        self._held[worker] = _Holder(ticket, now + self._terms.lease_s)
        return ticket

    def renew(self, worker: str, now: float) -> None:
        if worker in self._held:
            self._held[worker].until = now + self._terms.lease_s

    def expired(self, now: float) -> list[str]:
        """Workers whose lease is over. They keep their tickets until `leave`."""
        return [worker for worker, held in self._held.items() if held.until <= now]

    def leave(self, worker: str) -> None:
        """The worker is gone; its ticket goes to another. Idempotent."""
        held = self._held.pop(worker, None)
        self._speeds.pop(worker, None)
        if held is not None:
            heapq.heappush(self._returned, held.ticket)

    def receive(self, worker: str, number: int, seconds: float) -> Ticket | None:
        """The ticket that the worker delivers; None if it holds no such ticket (any more)."""
        held = self._held.get(worker)
        if held is None or held.ticket.number != number:
            return None
        del self._held[worker]
        self._received[number] = held.ticket
        if seconds > 0:
            speed, before = held.ticket.total / seconds, self._speeds.get(worker)
            self._speeds[worker] = speed if before is None else before + _NEWEST * (speed - before)
        return held.ticket

    def applied(self, ticket: Ticket) -> None:
        del self._received[ticket.number]
        self.samples += ticket.total

    def _open(self) -> list[Ticket]:
        return sorted([*self._returned, *self._received.values(), *self._tickets_held()])

    def _tickets_held(self) -> Iterator[Ticket]:
        return (held.ticket for held in self._held.values())

    def _allowed(self, ticket: Ticket) -> bool:
        if self._terms.staleness is None:
            return True
        oldest = min((t.number for t in self._open()), default=self._number)
        parts = self._terms.parts
        return ticket.number // parts <= oldest // parts + self._terms.staleness

    def _next(self, worker: str) -> Ticket | None:
        terms = self._terms
        room = terms.end - self._position
        if room <= 0:
            return None
        samples = terms.batch // terms.parts
        # Where steps are fewer than planned the schedule follows the samples, else the rounds.
        if terms.scaled:
            steps, first = self._scaled(worker), self._position // terms.batch
        else:
            steps, first = terms.every, self._number // terms.parts * terms.every
        return Ticket(self._number, self._position, min(steps, room // samples), samples, first + 1)

    def _scaled(self, worker: str) -> int:
        """In proportion to its speed, so that all take about as long (Liu et al., 2024)."""
        fastest = max(self._speeds.values(), default=0.0)
        own = self._speeds.get(worker, fastest)
        return max(1, round(self._terms.every * own / fastest)) if fastest else self._terms.every
