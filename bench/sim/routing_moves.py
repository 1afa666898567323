"""How many sessions move when the fleet changes, against the least number that must.

Compares the rankings alone, with no load: 8 replicas, one is added, one removed, one doubled in
weight. Ideal: those that lived on what is gone, or that the larger one's new part needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.sim.routing_rivals import maglev_table, ring, ring_place
from gateway.policy.rendezvous import Rendezvous, digest

Fleet = list[tuple[str, float]]  # names and weights
Place = Callable[[str], str]


def rendezvous(fleet: Fleet) -> Place:
    names = [name for name, _ in fleet]
    ranking = Rendezvous(names, [weight for _, weight in fleet])
    return lambda key: names[ranking.ranked(key)[0]]


def consistent_ring(fleet: Fleet) -> Place:
    points = ring([(name, round(150 * weight)) for name, weight in fleet])
    return lambda key: points[ring_place(points, key)][1]


def maglev(fleet: Fleet) -> Place:
    """Weight by as many turns as it is large."""
    turns = [f"{name}" for name, weight in fleet for _ in range(round(weight))]
    table = maglev_table(turns, 65537)
    return lambda key: turns[table[digest(key) % 65537]]


ALGORITHMS: Mapping[str, Callable[[Fleet], Place]] = {
    "session": rendezvous,
    "chwbl": consistent_ring,
    "maglev": maglev,
}

_EIGHT: Fleet = [(f"replica-{index}", 1.0) for index in range(8)]
CHANGES: Mapping[str, tuple[Fleet, Fleet]] = {
    "remove one": (_EIGHT, _EIGHT[:3] + _EIGHT[4:]),
    "add one": (_EIGHT, [*_EIGHT, ("replica-8", 1.0)]),
    "double one": (_EIGHT, [("replica-0", 2.0), *_EIGHT[1:]]),
}


def moves(algorithm: str, change: str, sessions: int) -> float:
    """Sessions moved over the ideal."""
    before, after = CHANGES[change]
    old, new = ALGORITHMS[algorithm](before), ALGORITHMS[algorithm](after)
    kept = {name for name, _ in after}
    moved = must = 0
    for index in range(sessions):
        key = f"session-{index}"
        was = old(key)
        moved += new(key) != was
        must += was not in kept
    total_before, total_after = sum(w for _, w in before), sum(w for _, w in after)
    weights = dict(before)
    gained = sum(
        max(0.0, weight / total_after - weights.get(name, 0.0) / total_before)
        for name, weight in after
        if name not in weights or weight > weights[name]
    )
    return moved / (must + gained * sessions)
