"""`relay`: what relaying an OpenAI request costs when the engine costs nothing (target 3).

Two scripted upstreams, one chat completion a request, not streamed: 64 keep-alive connections for
the rate, one for the latency. Ours routes by the model's name in the body, as the engines' routers
do; HAProxy, nginx and Envoy do not look into it. Each relay has one core and is measured in turns.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress

from rich.table import Table

from bench.record import Goal, Record
from bench.relaying import FLOOR, OURS, Contest, cores
from bench.rivals import RELAYS, chosen
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.tables import figures_table, number

CONNECTIONS = 64


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

        turns([*contest.start(contest.near), contest.add_direct()], 3 if quick else 7, 3)
        for far in contest.far:
            turns(contest.start([far]), 1 if quick else 3, 1 if quick else 3)
            if far in contest.up:
                contest.stop(far)
    rate.failures |= contest.failures
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
            **contest.detail((rate, p50)),
        },
        versions=contest.versions,
    )


def _rate(contest: Contest, name: str, repetition: int) -> float:
    quick = contest.options.quick
    if repetition == 0 or not quick:
        with suppress(MeasureFailed):  # caches, connections to the upstreams
            contest.burst(name, CONNECTIONS, 1)
    return contest.burst(name, CONNECTIONS, 1 if quick else 3, metered=True).rate


def _show(options: Options, title: str, contest: Contest, rate: Series, p50: Series) -> None:
    options.console.print(figures_table(title, contest.names, [rate, p50]))
    table = Table(title="what the relay itself used", title_justify="left")
    for column in ("relay", "CPU per request", "memory"):
        table.add_column(column, justify="left" if column == "relay" else "right")
    for name, micros in sorted(contest.cpu.items(), key=lambda item: item[1]):
        table.add_row(name, f"{number(micros)} µs", f"{number(contest.memory[name])} MB")
    options.console.print(table)


def goals(rate: Series, *, doubled: bool) -> list[Goal]:
    """`doubled`: twice vllm-router is wanted too."""
    found = []
    ours = rate.median(OURS)
    for rival, wanted in (("haproxy", 1.0), *([("vllm-router", 2.0)] if doubled else [])):
        its = rate.median(rival)
        if ours and its:
            found.append(Goal.least(f"against {rival}", ours / its, wanted, "×"))
    return found
