"""`relay`: what relaying an OpenAI request costs when the engine costs nothing (target 3).

Two scripted upstreams, one chat completion a request, not streamed: 64 keep-alive connections for
the rate, one for the latency. Ours routes by the model's name in the body, as the engines' routers
do; HAProxy, nginx and Envoy do not look into it. Each relay has one core and is measured in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from bench.contenders import JSON
from bench.load import generator
from bench.load.knee import Point, passed
from bench.load.spec import LoadSpec
from bench.record import Goal, Record
from bench.relaying import DIRECT, FLOOR, OURS, Contest, cores, request
from bench.rivals import RELAYS, chosen
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.tables import cost_table, figures_table

CONNECTIONS = 64
# Of the rate without a relay, on the same core: so near to it, that core is the limit.
NEAR = 0.75
# Of the open loop.
RATES = (1_000.0, 2_500.0, 5_000.0, 7_500.0, 10_000.0, 12_500.0, 15_000.0)


@scenario("relay", "OpenAI requests, not streamed, to two upstreams: what relaying itself costs")
def relay(options: Options) -> Record:
    return measure(options, "relay", "req/s", stream=False)


def measure(options: Options, name: str, unit: str, *, stream: bool) -> Record:
    rivals = chosen(options.rivals, quick=options.quick, among=RELAYS)
    rate = Series(f"rate, {CONNECTIONS} connections", unit, higher_is_better=True)
    p50 = Series("p50, 1 connection", "ms", higher_is_better=False)
    quick = options.quick
    with cores() as core, ExitStack() as stack:
        contest = Contest(options, stack, core, rivals, stream)
        contest.start_upstreams()

        def turns(names: list[str], rates: int, latencies: int) -> None:
            with options.console.status(f"{', '.join(names)} ..."):
                interleave(rate, names, rates, lambda who, turn: _rate(contest, who, turn))
                seconds = 1 if quick else 2
                interleave(
                    p50, names, latencies, lambda who, _: contest.burst(who, 1, seconds).p50 * 1e3
                )

        near = contest.start(contest.near)
        turns([*near, contest.add_direct()], 2 if quick else 5, 1 if quick else 3)
        curve = {} if quick or stream else _curve(contest, near)
        for far in contest.far:
            turns(contest.start([far]), 1 if quick else 3, 1 if quick else 3)
            if far in contest.up:
                contest.stop(far)
    rate.failures |= contest.failures
    for who in _rig_bound(rate):
        contest.limits[who] = "the client and the upstreams could carry little more"
    _show(options, name, contest, rate, p50)
    return Record(
        scenario=name,
        metric=rate.metric,
        unit=unit,
        higher_is_better=True,
        seed=options.seed,
        ours=rate.median(OURS),
        floor=rate.median(FLOOR),
        rivals={rival: rate.figure(rival) for rival in rivals},
        goals=goals(rate, doubled=not stream),
        detail={
            "p50_1_connection_ms": {who: p50.figure(who) for who in contest.names},
            "curve": curve,
            **contest.detail((rate, p50)),
        },
        versions=contest.versions,
    )


def _rate(contest: Contest, name: str, repetition: int) -> float:
    quick = contest.options.quick
    if repetition == 0 or not quick:
        with suppress(MeasureFailed):  # caches, connections to the upstreams
            contest.burst(name, CONNECTIONS, 1)
    return contest.burst(name, CONNECTIONS, 1 if quick else 2, metered=True).rate


def _rig_bound(rate: Series) -> list[str]:
    """Who came near to what there is without a relay: its own limit lies above."""
    direct = rate.median(DIRECT)
    if direct is None:
        return []
    medians = {who: rate.median(who) or 0.0 for who in rate.values if who != DIRECT}
    return [who for who, median in medians.items() if median >= NEAR * direct]


def _curve(contest: Contest, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Latency from the intended time at each rate of an open loop, until a relay is past it."""
    found: dict[str, list[dict[str, Any]]] = {}
    body = request(stream=False)
    for name in names:
        points: list[Point] = []
        with contest.options.console.status(f"{name}, open loop ..."):
            for rate in RATES:
                spec = LoadSpec(
                    url=contest.up[name].url,
                    body=body,
                    headers=JSON,
                    connections=256,
                    rate=rate,
                    warmup_s=0.3,
                    seconds=1.5,
                    timeout_s=2.0,
                )
                points.append(Point.of(rate, generator.run(spec)))
                if passed(points):
                    break
        found[name] = [point.to_json() for point in points]
    return found


def _show(options: Options, title: str, contest: Contest, rate: Series, p50: Series) -> None:
    options.console.print(figures_table(title, contest.names, [rate, p50]))
    options.console.print(cost_table("relay", contest.cpu, contest.memory))
    if contest.limits:
        options.console.print(
            f"limited by the client or the upstreams: {', '.join(contest.limits)}"
        )


def goals(rate: Series, *, doubled: bool) -> list[Goal]:
    """`doubled`: twice vllm-router is wanted too."""
    found = []
    ours = rate.median(OURS)
    for rival, wanted in (("haproxy", 1.0), *([("vllm-router", 2.0)] if doubled else [])):
        its = rate.median(rival)
        if ours and its:
            found.append(Goal.least(f"against {rival}", ours / its, wanted, "×"))
    return found
