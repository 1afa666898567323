"""What a routing decision costs: microseconds to choose among eight replicas."""

from __future__ import annotations

import random
from time import perf_counter

from gateway.policy.load import ReplicaLoad
from gateway.policy.routing import ROUTERS, RoutingKey, make_router

_ROUND, _ROUNDS = 1_000, 15


def decision_us() -> dict[str, float]:
    """Per router, once it knows its replicas, with a session and a prefix: the best round."""
    return {name: round(_measure(name), 2) for name in ROUTERS}


def _measure(name: str) -> float:
    rng = random.Random(1)
    loads = [ReplicaLoad(f"replica-{n}", 1.0 + n % 3, 2) for n in range(8)]
    router, now = make_router(name, rng), 0.0
    key = RoutingKey(session="session-1", prefix=tuple(range(20)))
    if name == "prefix":
        key = key._replace(session=None)
    held = []
    for _ in range(2_000):  # it learns, and is left with some in flight
        now += 0.001
        load = router.choose(loads, key, now)
        assert load is not None
        held.append(load.take(1.0, now))
        router.sent(held[-1], key, now)
        if len(held) > 20:
            lease = held.pop(rng.randrange(len(held)))
            lease.release(now)
            router.ended(lease, key, now, ok=True)
    best = float("inf")
    for _ in range(_ROUNDS):
        began = perf_counter()
        for _ in range(_ROUND):
            router.choose(loads, key, now)
        best = min(best, (perf_counter() - began) / _ROUND)
    return best * 1e6
