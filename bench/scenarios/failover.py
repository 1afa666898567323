"""`failover`: kill -9 of a replica under an open load, and its return (target 10).

Three replicas; one is killed, and comes back. Every request is kept with the time at which it was
due. Counted: failures that clients saw. Measured: until when after the kill requests were sent that
the dead replica hurt (a failure, or an answer later than any before the kill); how long after the
replica listens again it answers; latency around that. Ours twice: HTTP replicas behind the relay,
beside other relays, and native replicas that the supervisor restarts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.table import Table

from bench.asking import get_json
from bench.bodies import oip_request
from bench.contenders import JSON, launch_penstock, penstock_listens
from bench.load.spec import LoadSpec
from bench.load.watch import Seen, Watch
from bench.models import mlp
from bench.record import Goal, Record
from bench.relaying import OURS, Contest, cores, launch_upstream, listens, request
from bench.rivals import RELAYS, chosen
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.serving import Server, ServerFailed
from bench.tables import number

NATIVE = "penstock, native"
REPLICAS = 3
RATE = 1000.0
NATIVE_RATE = 500.0
# As an engine under way: so many requests are in the dead replica's hands.
DELAY_MS = 20.0
QUIET_S, AWAY_S, AFTER_S = 1.0, 1.0, 2.0
# No process of ours is up again within this; what the dead one sent before has come.
NATIVE_AWAY_S = 0.2
# What is done then may disturb requests that are still under way.
SETTLED_S = 0.1
# A relay may look for the returned replica now and then only.
LONGEST_S = 20.0


@dataclass(frozen=True, slots=True)
class Found:
    """One kill. Seconds; `back` counts from when the replica listens again (a native one: from the
    kill, with its start), None: not within LONGEST_S. p99s in the second before the kill, and in
    the one after the first answer of the replica that is back."""

    requests: int
    failed: int
    failures: tuple[str, ...]
    hurt_until: float
    back: float | None
    p99_before: float
    p99_back: float | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(slots=True)
class Times:
    """Of `time.monotonic`. `relaunched`: until then nobody has done anything about the kill."""

    began: float = 0.0
    killed: float = 0.0
    relaunched: float = 0.0
    listening: float = 0.0


def judge(seen: Sequence[Seen], times: Times, victim: str) -> Found:
    """What a run shows. Raises MeasureFailed."""
    began, killed, listening = times.began, times.killed, times.listening
    before = [s.seconds for s in seen if began <= s.due and s.ended < killed and s.good]
    if not before:
        raise MeasureFailed("nothing was answered before the kill")
    worst = max(before)
    hurt = [
        s.due - killed
        for s in seen
        if killed <= s.due < times.relaunched - SETTLED_S and (not s.good or s.seconds > 2 * worst)
    ]
    returned = [s.ended for s in seen if s.ended > listening and s.who == victim and s.good]
    first = min(returned, default=None)
    after = [s.seconds for s in seen if first is not None and first <= s.due <= first + 1.0]
    failures = [s.how for s in seen if not s.good]
    return Found(
        requests=len(seen),
        failed=len(failures),
        failures=tuple(sorted(set(failures)))[:3],
        hurt_until=max(hurt, default=0.0),
        back=None if first is None else first - listening,
        p99_before=float(np.percentile(before, 99)),
        p99_back=float(np.percentile(after, 99)) if after else None,
    )


def watch(spec: LoadSpec, script: Callable[[Watch], Awaitable[None]]) -> list[Seen]:
    async def run() -> list[Seen]:
        load = Watch(spec)
        return await load.run(lambda: script(load))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


async def until_back(load: Watch, victim: str, since: float) -> None:
    """Until it has answered again for AFTER_S, or LONGEST_S have passed."""
    end = since + LONGEST_S
    at = len(load.seen)
    while time.monotonic() < end:
        await asyncio.sleep(0.05)
        new, at = load.seen[at:], len(load.seen)
        if any(s.who == victim and s.good for s in new):
            end = min(end, time.monotonic() + AFTER_S)
            victim = ""  # found


def kill_upstream(contest: Contest, name: str) -> Found:
    """The first of the upstreams, before the relay `name`."""
    victim, port = contest.upstreams[0], contest.ports[0]
    body = request(stream=False)
    url = contest.up[name].url
    spec = LoadSpec(url=url, body=body, headers=JSON, rate=RATE, timeout_s=5.0)
    times = Times()

    async def script(load: Watch) -> None:
        await asyncio.sleep(0.5)
        times.began = time.monotonic()
        await asyncio.sleep(QUIET_S)
        times.killed = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        await asyncio.sleep(AWAY_S)
        times.relaunched = time.monotonic()
        again = await asyncio.to_thread(
            launch_upstream, contest.options.folder, "s0", port=port, delay_ms=DELAY_MS
        )
        contest.upstreams[0] = contest.stack.enter_context(again)
        await asyncio.to_thread(listens, again)
        times.listening = time.monotonic()
        await until_back(load, "s0", times.listening)

    seen = watch(spec, script)
    return judge(seen, times, "s0")


def kill_native(options: Options, folder: Path, server: Server, base: str, admin: str) -> Found:
    """One of ours; the supervisor starts it again."""
    victim = get_json(f"{admin}/status")["models"][0]["replicas"][0]
    row_1I = np.ones((1, mlp.INPUTS), np.float32)
    url = f"{base}/v2/models/mlp/infer"
    spec = LoadSpec(
        url=url, body=oip_request(row_1I), headers=JSON, rate=NATIVE_RATE, timeout_s=5.0
    )
    times = Times()

    async def script(load: Watch) -> None:
        await asyncio.sleep(0.5)
        times.began = time.monotonic()
        await asyncio.sleep(QUIET_S)
        times.killed = time.monotonic()
        os.kill(victim["pid"], signal.SIGKILL)
        await asyncio.sleep(NATIVE_AWAY_S)
        times.relaunched = times.listening = time.monotonic()
        await until_back(load, victim["name"], time.monotonic())

    seen = watch(spec, script)
    found = judge(seen, times, victim["name"])
    # Its way back is part of the product here.
    back = None if found.back is None else found.back + NATIVE_AWAY_S
    return Found(**{**found.to_json(), "back": back})


@scenario("failover", "kill -9 of a replica under load: what fails, how long it hurts, its return")
def failover(options: Options) -> Record:
    rivals = chosen(options.rivals, quick=options.quick, among=RELAYS)
    hurt = Series("hurt until, after the kill", "ms", higher_is_better=False)
    kills = 2 if options.quick else 3
    found: dict[str, list[Found]] = {}

    def measure(name: str, take: Callable[[], Found]) -> float:
        with options.console.status(f"{name}, kill {len(found.get(name, [])) + 1} ..."):
            one = take()
        found.setdefault(name, []).append(one)
        return max(one.hurt_until, 1 / RATE) * 1e3  # below what the rate can tell

    with cores() as core, ExitStack() as stack:
        contest = Contest(options, stack, core, rivals, stream=False)
        contest.start_upstreams(REPLICAS, delay_ms=DELAY_MS)
        names = contest.start([OURS, *contest.near[2:]])
        interleave(
            hurt, names, kills, lambda name, _: measure(name, lambda: kill_upstream(contest, name))
        )
        for name in contest.far:
            got = contest.start([name])
            take = lambda name, _: measure(name, lambda: kill_upstream(contest, name))  # noqa: E731
            interleave(hurt, got, min(kills, 2), take)
        hurt.failures |= contest.failures
    _native(options, hurt, kills, measure)
    _show(options, found, hurt)
    ours, native = found.get(OURS, []), found.get(NATIVE, [])
    return Record(
        scenario="failover",
        metric=hurt.metric,
        unit=hurt.unit,
        higher_is_better=False,
        seed=options.seed,
        ours=hurt.median(OURS),
        rivals={rival: hurt.figure(rival) for rival in rivals},
        goals=[goal for runs in (ours, native) if runs for goal in _goals(runs, runs is native)],
        detail={
            "kills": {name: [one.to_json() for one in runs] for name, runs in found.items()},
            "repetitions": {hurt.metric: hurt.to_json()},
            "rate": RATE,
            "native_rate": NATIVE_RATE,
            "replica_delay_ms": DELAY_MS,
        },
        versions=contest.versions,
    )


def _native(
    options: Options,
    hurt: Series,
    kills: int,
    measure: Callable[[str, Callable[[], Found]], float],
) -> None:
    folder = options.folder / "native"
    contender = launch_penstock(folder, name=NATIVE, replicas=2)
    with contender.server as server:
        try:
            contender.ready()
        except ServerFailed as error:
            hurt.failures[NATIVE] = str(error)
            return
        base, admin = penstock_listens(server)

        def kill(name: str, repetition: int) -> float:
            server.wait("both replicas", lambda: _all_ready(admin), 120)
            return measure(name, lambda: kill_native(options, folder, server, base, admin))

        interleave(hurt, [NATIVE], kills, kill)


def _all_ready(admin: str) -> bool:
    replicas = get_json(f"{admin}/status")["models"][0]["replicas"]
    return all(replica["state"] == "ready" for replica in replicas)


def _goals(runs: Sequence[Found], native: bool) -> list[Goal]:
    what = "native replicas" if native else "HTTP replicas"
    spikes = [one.p99_back / one.p99_before for one in runs if one.p99_back is not None]
    goals = [
        Goal.most(f"failed requests, {what}", sum(one.failed for one in runs), 0, ""),
        Goal.most(f"worst time until off, {what}", 1e3 * max(o.hurt_until for o in runs), 10, "ms"),
        Goal.least(f"came back, {what}", len(spikes), len(runs), "kills"),
    ]
    if spikes:
        spike = float(np.median(spikes))
        goals.append(Goal.most(f"p99 at the return against before, {what}", spike, 1.5, "×"))
    return goals


def _show(options: Options, found: dict[str, list[Found]], hurt: Series) -> None:
    table = Table(title="kill -9 of one replica", title_justify="left")
    table.add_column("gateway")
    columns = ("kills", "sent", "failed", "hurt until", "back after", "p99 before", "p99, back")
    for column in columns:
        table.add_column(column, justify="right")
    for name, runs in found.items():
        back = [one.back for one in runs if one.back is not None]
        p99_back = [one.p99_back for one in runs if one.p99_back is not None]
        table.add_row(
            name,
            str(len(runs)),
            f"{sum(one.requests for one in runs):,}",
            f"{sum(one.failed for one in runs):,}",
            f"{number(1e3 * max(one.hurt_until for one in runs))} ms",
            f"{number(float(np.median(back)))} s" if len(back) == len(runs) else "never",
            f"{number(1e3 * float(np.median([one.p99_before for one in runs])))} ms",
            f"{number(1e3 * float(np.median(p99_back)))} ms" if p99_back else "",
        )
    options.console.print(table)
    for name, reason in hurt.failures.items():
        options.console.print(f"{name}: {reason}", style="yellow", markup=False)
