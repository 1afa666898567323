"""The routing simulator: conservation, determinism, faults that bite, and what it must show."""

from __future__ import annotations

import json

import pytest

from bench.sim import routing
from bench.sim.engine import Engine, stream
from bench.sim.routing_moves import ALGORITHMS, CHANGES, moves
from bench.sim.routing_rivals import P2C, ChwblRing, Maglev, PeakEwma, maglev_table
from bench.sim.routing_run import FLOOR, RIVALS, run
from bench.sim.routing_scenarios import SCENARIOS, pareto
from bench.sim.routing_world import Job, Server
from gateway.policy.load import ReplicaLoad
from gateway.policy.routing import NO_KEY, RoutingKey

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


class Sink:
    """A gateway that only notes what became of its jobs."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ended = engine, []

    def answered(self, job: Job) -> None:
        self.ended.append((round(self.engine.now, 9), "answered"))

    def failed(self, job: Job, why: object) -> None:
        self.ended.append((round(self.engine.now, 9), "failed"))


def served(server: Server, engine: Engine, sizes: list[float], warm: tuple[str, ...] = ()) -> Sink:
    sink = Sink(engine)
    for size in sizes:
        job = Job(0.0, size, size, NO_KEY, warm)
        job.gateway = sink  # type: ignore[assignment]
        assert server.submit(job)
    return sink


def server(engine: Engine, **options: float) -> Server:
    return Server(engine, "a", rng=stream(1, "server"), **options)


# -------------------------------------------------------------------------------------- the servers


def test_a_server_is_first_come_first_served_on_its_slots():
    engine = Engine()
    sink = served(server(engine, slots=2), engine, [3.0, 1.0, 1.0, 4.0])
    engine.run()
    assert [when for when, _ in sink.ended] == [1.0, 2.0, 3.0, 6.0]


def test_a_change_of_speed_holds_for_what_runs():
    engine = Engine()
    a = server(engine, slots=1)
    sink = served(a, engine, [2.0, 1.0])
    engine.at(1.0, a.set_speed, 0.5)
    engine.at(5.0, a.set_speed, 1.0)
    engine.run()
    assert [when for when, _ in sink.ended] == [3.0, 5.0]


def test_what_is_ahead_is_known_exactly():
    engine = Engine()
    a = server(engine, slots=2)
    served(a, engine, [3.0])
    assert a.ahead() == 0.0
    served(a, engine, [1.0, 1.0, 4.0])
    assert a.ahead() == 3.0
    engine.run(until=0.5)
    assert a.ahead() == 2.5


def test_a_crash_loses_what_is_held_and_refuses_what_comes():
    engine = Engine()
    a = server(engine, slots=1)
    sink = served(a, engine, [2.0, 1.0])
    engine.at(1.0, a.crash)
    engine.run()
    assert sink.ended == [(1.0, "failed")] * 2
    assert not a.submit(Job(0.0, 1.0, 1.0, NO_KEY))
    a.restart()
    assert a.submit(Job(0.0, 1.0, 1.0, NO_KEY))


def test_caches_save_work_and_forget_the_oldest():
    engine = Engine()
    a = server(engine, slots=1, cache=2, miss=4.0)
    ends = []
    for name in ("x", "x", "y", "z", "x"):
        start = engine.now
        served(a, engine, [1.0], (name,))
        engine.run()
        ends.append(engine.now - start)
    assert ends == [4.0, 1.0, 4.0, 4.0, 4.0]
    assert (a.hits, a.lookups) == (1, 5)


# --------------------------------------------------------------------------------------- the rivals


def test_maglev_tables_are_full_and_even():
    table = maglev_table(["a", "b", "c"], 1021)
    assert min(table) == 0 and max(table) == 2
    assert max(table.count(n) for n in range(3)) - min(table.count(n) for n in range(3)) <= 1


def test_the_bounded_ring_spills_at_its_bound():
    loads = [ReplicaLoad(name) for name in "abcd"]
    ring, key = ChwblRing(), RoutingKey(session="s")
    home = ring.choose(loads, key, 0.0)
    for _ in range(3):
        home.take(1.0, 0.0)
    assert ring.choose(loads, key, 0.0) is not home
    assert Maglev().choose(loads, key, 0.0) in loads


def test_p2c_and_peak_ewma_prefer_the_emptier_and_the_faster():
    loads = [ReplicaLoad("a"), ReplicaLoad("b")]
    held = loads[0].take(1.0, 0.0)
    assert P2C(stream(1)).choose(loads, NO_KEY, 0.0) is loads[1]
    held.release(0.0)
    router = PeakEwma(stream(1))
    for load, seconds in ((loads[0], 1.0), (loads[1], 0.1)):
        lease = load.take(1.0, 0.0)
        lease.release(seconds)
        router.ended(lease, NO_KEY, seconds, ok=True)
    assert router.choose(loads, NO_KEY, 1.0) is loads[1]


# ----------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_request_ends_once_and_runs_repeat(name):
    scenario = BY_NAME[name]
    ours, _, rivals = routing.contestants(scenario)
    for policy in (ours, rivals[0]):
        figures = run(scenario, policy, 0.4, 1500, 3)
        assert figures.requests == len(figures.latencies) == 1500 - int(scenario.warm_up * 1500)
        assert figures.attempts >= figures.requests and min(figures.latencies) > 0.0
        again = run(scenario, policy, 0.4, 1500, 3)
        assert again.latencies == figures.latencies and again.spread == figures.spread


def test_traces_have_the_load_they_say():
    for scenario in SCENARIOS:
        rows = scenario.trace(0.5, 20_000, 1)
        warm = int(0.8 * scenario.warm_up * 20_000) if scenario.cache else 0
        seconds = rows[-1].arrival - rows[warm].arrival
        rate = (20_000 - warm) / seconds
        expected = 0.5 * sum(scenario.speeds) * 2 * scenario.left / 0.010
        assert rate == pytest.approx(expected, rel=0.05)
        assert {row.gateway for row in rows} == set(range(scenario.gateways))


def test_bounded_pareto_has_mean_one():
    rng, size = stream(1), pareto(1.5, 1000.0)
    assert sum(size(rng) for _ in range(200_000)) / 200_000 == pytest.approx(1.0, abs=0.1)


def test_faults_are_seen_and_healthy_replicas_are_not_ejected():
    for name in ("crash", "gray-errors"):
        figures = run(BY_NAME[name], "predictive", 0.6, 6000, 1)
        assert figures.detected is not None and figures.detected < 0.5
        assert figures.false_ejections == 0 and figures.failed == 0
        assert 1.0 < figures.attempts / figures.requests < 1.05


def test_the_floor_is_a_floor():
    scenario = BY_NAME["heterogeneous"]
    floor = run(scenario, FLOOR, 0.7, 5000, 1).quantile(0.99)
    assert all(
        floor < run(scenario, policy, 0.7, 5000, 1).quantile(0.99)
        for policy in ("wlc", "predictive", "prequal", "p2c")
    )


@pytest.mark.parametrize("name", ["unweighted", "antagonist", "reload", "gateways-8"])
def test_ours_leads_where_replicas_differ(name):
    """Simulated times: the same on every machine."""
    scenario = BY_NAME[name]
    ours, _, rivals = routing.contestants(scenario)
    load = scenario.loads[-1]
    best = min(run(scenario, rival, load, 8000, 1).quantile(0.99) for rival in rivals)
    assert run(scenario, ours, load, 8000, 1).quantile(0.99) < best


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_moves_stay_within_five_percent_of_ideal(change):
    assert moves("session", change, 20_000) <= 1.05
    assert all(moves(name, change, 2_000) > 0.5 for name in ALGORITHMS)


def test_the_command_prints_tables_and_one_json_line(capsys, tmp_path, monkeypatch):
    small = [BY_NAME["gateways-2"], BY_NAME["prefixes"], BY_NAME["crash"]]
    monkeypatch.setattr(routing, "SCENARIOS", small)
    monkeypatch.setattr(routing, "QUICK_REQUESTS", 400)
    file = tmp_path / "line.json"
    assert routing.main(["--quick", "--json", str(file)]) == 0
    out = capsys.readouterr().out.splitlines()
    line = json.loads(out[-1])
    assert json.loads(file.read_text()) == line
    assert line["scenario"] == "sim-routing" and line["unit"] == "ms" and line["seed"] == 1
    assert set(line["rivals"]) == set(RIVALS)
    keys = {"metric", "ours", "floor", "ratio_best_rival", "ratio_floor", "detail", "commit"}
    assert keys | {"hardware", "versions"} <= set(line)
    assert [goal["what"].split()[0] for goal in line["detail"]["goals"]] == ["best", "session"]
    assert set(line["detail"]["scenarios"]) == {s.name for s in small}
    assert all(cost > 0 for cost in line["detail"]["decision_us"].values())
    assert any("crash: one of 8 is killed" in row for row in out)
