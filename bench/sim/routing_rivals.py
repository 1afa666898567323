"""Other people's routing policies, written from their papers and sources, for the simulator.

Each is a `Router` so that the same gateway runs it. They see what the originals see: requests in
flight of their own gateway, weights, latencies of their own requests; Prequal also its probes.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import exp

from bench.sim.engine import Engine
from bench.sim.routing_world import Server
from gateway.policy.candidate import C, RoutingKey, Unlearned
from gateway.policy.load import Lease
from gateway.policy.rendezvous import digest


class LvsWlc(Unlearned):
    """Linux Virtual Server's wlc: least connections over weight, the first of equals."""

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        able = [c for c in candidates if c.weight > 0.0]
        return min(able, key=lambda c: c.in_flight / c.weight) if able else None


class P2C(Unlearned):
    """Two drawn uniformly, the one with fewer requests over weight (Envoy's least request)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        a, b = self._rng.sample(candidates, 2)
        return a if (a.in_flight + 1) / a.weight <= (b.in_flight + 1) / b.weight else b


class PeakEwma:
    """Finagle's: two drawn uniformly, least ewma × (pending + 1); a peak is taken at once."""

    def __init__(self, rng: random.Random, tau: float = 10.0) -> None:
        self._rng, self._tau = rng, tau
        self._ewma: dict[str, tuple[float, float]] = {}

    def _cost(self, candidate: C, now: float) -> float:
        known = self._ewma.get(candidate.name)
        if known is None:
            return 0.0 if candidate.in_flight == 0 else 1e9 + candidate.in_flight
        value, stamp = known
        return value * exp((stamp - now) / self._tau) * (candidate.in_flight + 1)

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        a, b = self._rng.sample(candidates, 2)
        return a if self._cost(a, now) <= self._cost(b, now) else b

    def sent(self, lease: Lease, request: RoutingKey, now: float) -> None:
        pass

    def ended(self, lease: Lease, request: RoutingKey, now: float, *, ok: bool) -> None:
        seconds = now - lease.taken
        known = self._ewma.get(lease.replica)
        if known is None or seconds > known[0]:
            self._ewma[lease.replica] = (seconds, now)
        else:
            kept = exp((known[1] - now) / self._tau)
            self._ewma[lease.replica] = (known[0] * kept + seconds * (1.0 - kept), now)


class _Probe:
    __slots__ = ("latency", "name", "rif", "uses", "when")

    def __init__(self, name: str, rif: int, latency: float, when: float, uses: float) -> None:
        self.name, self.rif, self.latency, self.when, self.uses = name, rif, latency, when, uses


class Prequal(Unlearned):
    """Google's probing to reduce queueing (NSDI 2024), asynchronous mode with its defaults.

    3 probes per request, a pool of 16, age at most 1 s, one removal per request (oldest and worst
    by turns), reuse b = (1 + delta) / ((1 - m / n) * r_probe - r_remove); hot above the 2^-0.25
    quantile of requests in flight; the cold one of least latency, else the least in flight.
    """

    def __init__(
        self,
        rng: random.Random,
        engine: Engine,
        servers: Mapping[str, Server],
        delay: float = 0.0003,
    ) -> None:
        self._rng, self._engine, self._servers, self._delay = rng, engine, servers, delay
        self._names = list(servers)
        self._pool: list[_Probe] = []
        self._recent: list[int] = []
        self._removals = 0
        useful = (1.0 - min(16, len(servers) - 1) / len(servers)) * 3.0 - 1.0
        # With few servers the formula has no solution: the pool's bound and age do the work.
        self._uses = max(1.0, 2.0 / useful) if useful > 0 else 16.0

    def _probe(self) -> None:
        now = self._engine.now
        for name in self._rng.sample(self._names, min(3, len(self._names))):
            server = self._servers[name]
            if server.up:
                rif = server.rif
                self._recent.append(rif)
                self._pool.append(_Probe(name, rif, server.latency_at(rif), now, self._uses))
        del self._recent[:-64]
        del self._pool[:-16]

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        if not candidates:
            return None
        self._engine.after(self._delay, self._probe)
        by_name = {c.name: c for c in candidates}
        self._pool = [p for p in self._pool if now - p.when <= 1.0]
        usable = [p for p in self._pool if p.name in by_name]
        if len(usable) < 2:
            return self._rng.choice(candidates)
        ranked = sorted(self._recent)
        hot = ranked[min(int(2**-0.25 * len(ranked)), len(ranked) - 1)]
        cold = [p for p in usable if p.rif <= hot]
        best = min(cold, key=_latency) if cold else min(usable, key=_in_flight)
        for probe in self._pool:  # the request just sent is in flight there, too
            if probe.name == best.name:
                probe.rif += 1
        best.uses -= 1.0
        if best.uses < 1.0 and self._rng.random() >= best.uses:
            self._pool.remove(best)
        self._remove(hot)
        return by_name[best.name]

    def _remove(self, hot: int) -> None:
        if len(self._pool) < 2:
            return
        self._removals += 1
        if self._removals % 2:
            self._pool.pop(0)
            return
        hots = [p for p in self._pool if p.rif > hot]
        self._pool.remove(max(hots, key=_in_flight) if hots else max(self._pool, key=_latency))


def _in_flight(probe: _Probe) -> int:
    return probe.rif


def _latency(probe: _Probe) -> float:
    return probe.latency


def ring(members: Sequence[tuple[str, int]]) -> list[tuple[int, str]]:
    """The hash ring of members with so many points each."""
    return sorted((digest(f"{name}{n}"), name) for name, points in members for n in range(points))


def ring_place(points: Sequence[tuple[int, str]], key: str) -> int:
    """Where on the ring a key belongs."""
    return bisect_left(points, (digest(key), "")) % len(points)


def _affinity(request: RoutingKey) -> str:
    """The session, or else the start of the prompt, as KubeAI has it."""
    return request.session or str(request.prefix[:1])


class ChwblRing(Unlearned):
    """Consistent hashing with bounded loads: a ring of 150 points each, bound c × mean requests."""

    def __init__(self, bound: float = 1.25, points: int = 150) -> None:
        self._bound, self._points = bound, points
        self._built: tuple[str, ...] = ()
        self._ring: list[tuple[int, str]] = []
        self._walks: dict[int, list[str]] = {}

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        names = tuple(c.name for c in candidates if c.weight > 0.0)
        if not names:
            return None
        if names != self._built:
            self._ring = ring([(name, self._points) for name in names])
            self._built, self._walks = names, {}
        by_name = {c.name: c for c in candidates}
        most = self._bound * (sum(c.in_flight for c in candidates) + 1) / len(names)
        for name in self._walk(ring_place(self._ring, _affinity(request))):
            candidate = by_name[name]
            if candidate.in_flight + 1 <= max(most, 1.0):
                return candidate
        return candidates[0]

    def _walk(self, start: int) -> list[str]:
        """The members in the order in which they are met from there on."""
        walk = self._walks.get(start)
        if walk is None:
            met = (name for _, name in self._ring[start:] + self._ring[:start])
            walk = self._walks[start] = list(dict.fromkeys(met))
        return walk


class Maglev(Unlearned):
    """Google's table hashing (NSDI 2016), 65,537 entries, no bound on load."""

    def __init__(self, size: int = 65537) -> None:
        self._size = size
        self._built: tuple[str, ...] = ()
        self._table: list[int] = []

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        names = tuple(c.name for c in candidates if c.weight > 0.0)
        if not names:
            return None
        if names != self._built:
            self._table, self._built = maglev_table(names, self._size), names
        chosen = names[self._table[digest(_affinity(request)) % self._size]]
        return next(c for c in candidates if c.name == chosen)


def maglev_table(names: Sequence[str], size: int) -> list[int]:
    steps = [(digest(f"{n}/offset") % size, digest(f"{n}/skip") % (size - 1) + 1) for n in names]
    table, at, filled = [-1] * size, [0] * len(names), 0
    while True:
        for index, (offset, skip) in enumerate(steps):
            place = (offset + at[index] * skip) % size
            while table[place] >= 0:
                at[index] += 1
                place = (offset + at[index] * skip) % size
            table[place] = index
            at[index] += 1
            filled += 1
            if filled == size:
                return table


class Omniscient(Unlearned):
    """The floor: knows every size, queue and speed, and takes the server that is first done."""

    def __init__(self, servers: Mapping[str, Server], size: Callable[[], float]) -> None:
        self._servers, self._size = servers, size

    def choose(
        self, candidates: Sequence[C], request: RoutingKey, now: float, *, cost: float = 1.0
    ) -> C | None:
        size, servers = self._size(), self._servers
        able = [c for c in candidates if servers[c.name].up] or candidates
        return min(
            able,
            key=lambda c: servers[c.name].ahead() + size / servers[c.name].speed,
            default=None,
        )
