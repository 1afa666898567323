"""The batching simulator: its oracles against brute force, its rivals, and the ranking."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.__main__ import main
from bench.serving import ROOT
from bench.sim.batch_clairvoyant import clairvoyant
from bench.sim.batch_contest import OURS, half_width, play
from bench.sim.batch_foresightless import foresightless
from bench.sim.batch_rivals import Bento, Clipper, Coin, Early, Mosec, Nexus, Triton, Window
from bench.sim.batch_rules import Greedy, Penstock
from bench.sim.batch_workload import Cell, arrivals, knee, linear, padded
from bench.sim.batch_world import World

ALONE = Cell("alone", linear(8.0, 1.0, 16), 0.050)
PAIR = Cell("pair", linear(8.0, 1.0, 16), 0.050, replicas=2)


def run(cell, rule, times, seed=1):
    return World(cell, rule, times, seed).run()


# ------------------------------------------------------------------------------------- oracles


def brute_force(times, curve, slo):
    """Every set of requests at every possible start."""
    count = len(times)
    largest = len(curve) - 1

    @cache
    def most(free, left):
        best = 0
        for size in range(1, min(largest, len(left)) + 1):
            for batch in combinations(left, size):
                start = max(free, max(times[i] for i in batch))
                end = round(start + curve[size], 9)
                if all(end <= times[i] + slo + 1e-9 for i in batch):
                    rest = tuple(i for i in left if i not in batch)
                    best = max(best, size + most(end, rest))
        return best

    return most(0.0, tuple(range(count)))


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sampled_from((1, 2, 3, 5)),
    st.sampled_from((2, 4, 7)),
    st.sampled_from(((1, 1, 1), (3, 1, 3), (1, 2, 2), (2, 0, 4))),
)
@settings(max_examples=120, deadline=None)
def test_the_clairvoyant_does_what_trying_everything_does(gaps, scale, slo, shape):
    fixed, each, largest = shape
    times = [float(sum(gaps[: i + 1])) / scale for i in range(len(gaps))]
    curve = (0.0, *(float(fixed + each * b) for b in range(1, largest + 1)))
    assert clairvoyant(times, curve, float(slo)) == brute_force(times, curve, float(slo))


def test_the_clairvoyant_needs_no_more_columns_than_it_finds_out():
    # 200 at once, of which one batch of 100 can be met: more drops than the first attempt holds.
    assert clairvoyant([0.001] * 200, linear(1.0, 0.0, 100), 0.0015) == 100


def test_nothing_can_be_met_when_one_alone_takes_too_long():
    assert clairvoyant([0.0, 1.0], linear(8.0, 1.0, 4), 0.005) == 0
    assert foresightless(100.0, linear(8.0, 1.0, 4), 0.005) == 0.0


@pytest.mark.parametrize("erlangs", [0.2, 1.0, 3.0])
def test_without_room_to_wait_the_foresightless_is_erlangs_loss_formula(erlangs):
    curve = linear(10.0, 0.0, 1)  # alone, and the deadline leaves no time to wait
    assert foresightless(erlangs / curve[1], curve, curve[1]) == pytest.approx(
        1.0 / (1.0 + erlangs), abs=0.03
    )


@pytest.mark.parametrize(
    ("cell", "load", "goodput"),
    [
        (Cell("tight", linear(8.0, 0.25, 68), 0.025), 1.0, 0.9698153226830019),
        (Cell("small", linear(2.0, 1.0, 16), 0.010), 1.0, 0.8922336375391103),
        (Cell("small", linear(2.0, 1.0, 16), 0.010), 1.2, 0.8164903035787086),
    ],
)
def test_the_foresightless_is_what_it_was_before_anything_was_made_in_advance(cell, load, goodput):
    found = foresightless(load * cell.capacity, cell.curve, cell.slo_s)
    assert found == pytest.approx(goodput, rel=1e-9)


@pytest.mark.parametrize("load", [0.7, 1.0, 1.1])
def test_ours_stands_close_below_the_foresightless_and_that_below_the_clairvoyant(load):
    cell = Cell("small", linear(2.0, 1.0, 16), 0.010)
    times = arrivals(cell, load, 8000, 1)
    ours = run(cell, Penstock(cell), times).goodput
    l2 = clairvoyant(times, cell.curve, cell.slo_s) / len(times)
    l3 = foresightless(load * cell.capacity, cell.curve, cell.slo_s)
    assert 0.97 * l3 <= ours <= l2
    assert l3 <= l2 + 0.01


# ------------------------------------------------------------------------------------ workload


def test_curves_have_their_shapes():
    assert linear(8.0, 0.5, 2) == pytest.approx((0.0, 0.0085, 0.009))
    assert padded(8.0, 1.0, 5)[1:] == pytest.approx((0.009, 0.010, 0.012, 0.012, 0.016))
    assert knee(6.0, 1.0, 2, 4)[1:] == pytest.approx((0.006, 0.006, 0.007, 0.008))


def test_capacity_leaves_a_request_time_to_wait():
    # One replica: 2 (8 + b) <= 50 ms; two staggered: 1.5 (8 + b) <= 50.
    assert ALONE.best == 16 and Cell("x", linear(8.0, 1.0, 64), 0.050).best == 17
    assert Cell("x", linear(8.0, 1.0, 64), 0.050, replicas=2).best == 25
    assert PAIR.capacity == pytest.approx(2 * 16 / 0.024)


@pytest.mark.parametrize("bursty", [False, True])
def test_arrivals_have_the_rate_of_their_load_and_depend_on_the_seed(bursty):
    cell = Cell("x", linear(8.0, 0.25, 64), 0.020, bursty=bursty)
    times = arrivals(cell, 0.5, 60_000, 1)
    assert times == sorted(times) == arrivals(cell, 0.5, 60_000, 1)
    assert len(times) / times[-1] == pytest.approx(0.5 * cell.capacity, rel=0.1)
    assert times != arrivals(cell, 0.5, 60_000, 2)


def test_half_width_is_students():
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30 / 3**0.5)
    assert half_width([1.0]) == float("inf")


# -------------------------------------------------------------------------- world and its rules


@pytest.mark.parametrize("cell", [ALONE, PAIR])
@pytest.mark.parametrize("load", [0.5, 1.2])
def test_every_rule_ends_every_request_once(cell, load):
    times = arrivals(cell, load, 1500, 3)
    rules = [
        Penstock(cell),
        Penstock(cell, hold=False),
        Greedy(cell),
        Window(cell, 0.005, 0.050, 8),
        Triton(cell, 0.005, 0.050, 16, 4),
        Early(cell, 0.005, 8),
        Mosec(cell, 0.005, 8),
        Bento(cell, 16),
        Clipper(cell),
        Nexus(cell, load),
        Coin(cell, 3),
    ]
    for rule in rules:
        outcome = run(cell, rule, times)  # asserts that none is lost or doubled
        assert outcome.in_time + outcome.late + outcome.dropped == len(times)


def test_what_comes_before_the_warm_up_is_served_but_not_counted():
    outcome = World(ALONE, Greedy(ALONE), [0.0, 0.0, 1.0, 1.0], 1, 0.5).run()
    assert (outcome.offered, outcome.in_time, outcome.mean_batch) == (2, 2, 4 / 4)


def test_a_window_delays_a_lone_request_and_late_binding_does_not():
    assert run(ALONE, Window(ALONE, 0.020, 0.050, 16), [0.0]).latency_p50 == pytest.approx(0.029)
    assert run(ALONE, Triton(ALONE, 0.020, 0.050, 16), [0.0]).latency_p50 == pytest.approx(0.029)
    assert run(ALONE, Greedy(ALONE), [0.0]).latency_p50 == pytest.approx(0.009)
    assert run(ALONE, Penstock(ALONE), [0.0]).latency_p50 == pytest.approx(0.009)


def test_triton_grows_its_batch_until_a_slot_is_free_where_ray_has_closed_it():
    times = [0.0, 0.003, 0.006, 0.0085]
    late = run(ALONE, Triton(ALONE, 0.0, 0.050, 16), times)
    early = run(ALONE, Early(ALONE, 0.002, 16), times)
    assert (late.mean_batch, early.mean_batch) == (2.0, 1.0)  # 1, then 3 together; all alone
    assert late.latency_p99 < early.latency_p99


def test_competing_pullers_split_what_one_queue_would_keep_together():
    assert run(PAIR, Mosec(PAIR, 0.010, 16), [0.0, 0.001, 0.002, 0.003]).mean_batch == 2.0
    assert run(PAIR, Triton(PAIR, 0.010, 0.050, 16), [0.0, 0.001, 0.002, 0.003]).mean_batch == 4.0


def test_bento_drops_a_head_that_it_predicts_late():
    cell = Cell("x", linear(20.0, 1.0, 16), 0.050)
    warmed = [float(i) for i in range(5)]
    # At 10.021 the first of the seven has waited 20 ms, and 20 + 7 more is foreseen.
    outcome = run(cell, Bento(cell, 16), [*warmed, 10.0, *[10.001] * 7])
    assert outcome.in_time + outcome.dropped + outcome.late == 13


def test_clippers_batches_grow_by_one_and_shrink_by_a_tenth():
    rule = Clipper(Cell("x", linear(8.0, 1.0, 64), 0.050))
    batch = [type("Request", (), {"deadline": 1.0})()]
    for _ in range(20):
        rule.ended(batch * 64, 0.01, now=0.5)
    assert rule._largest == 21.0
    rule.ended(batch, 0.01, now=1.5)
    assert rule._largest == pytest.approx(18.9)


# ------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize(
    ("cell", "load", "requests", "lead"),
    [
        (Cell("tight", linear(8.0, 0.25, 32), 0.025), 1.0, 2000, 0.01),
        (Cell("small", linear(2.0, 1.0, 16), 0.010), 0.8, 2000, 0.02),
        (Cell("padded", padded(8.0, 0.25, 64), 0.050, replicas=2), 1.0, 8000, -0.005),
        (Cell("launch", linear(8.0, 0.25, 160), 0.050, replicas=4), 1.0, 2000, 0.01),
        (Cell("small", linear(2.0, 1.0, 16), 0.010, replicas=4, bursty=True), 0.9, 2000, 0.005),
    ],
    ids=lambda value: f"{value.name}-{value.replicas}" if isinstance(value, Cell) else None,
)
def test_ours_leads_every_tuned_rival(cell, load, requests, lead):
    match = play(cell, load, requests, [1], tune=800, warm=20.0)
    rivals = {name: match.goodput(name) for name in match.outcomes if name != OURS}
    assert match.ours >= max(rivals.values()) + lead, rivals


def test_at_low_load_nothing_is_lost_and_nothing_waits_in_vain():
    for cell in (ALONE, PAIR):
        times = arrivals(cell, 0.02, 2000, 5)
        ours, greedy = run(cell, Penstock(cell), times), run(cell, Greedy(cell), times)
        assert ours.goodput == 1.0
        assert ours.latency_p50 <= greedy.latency_p50 + 1e-9


def test_a_run_is_a_function_of_its_seed():
    cell = Cell("x", linear(8.0, 0.25, 64), 0.050, replicas=2, noise=0.2)
    times = arrivals(cell, 1.0, 2000, 7)
    assert run(cell, Penstock(cell), times, 7) == run(cell, Penstock(cell), times, 7)


def test_the_command_prints_tables_and_one_line(capsys, tmp_path):
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--cell", "small", "--load", "1.0", "--json", str(file)]
    assert main(["sim", "batching", *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    line = json.loads(printed[-1])
    assert line == json.loads(file.read_text())
    assert line["scenario"] == "sim-batching"
    assert {"ours", "floor", "rivals", "ratio_best_rival", "commit", "seed"} <= line.keys()
    assert line["ratio_best_rival"] > 1.0 < line["ratio_floor"]
    assert all(goal["met"] for goal in line["detail"]["goals"])
    assert any(text.startswith("  penstock") for text in printed)


def test_the_figures_are_the_same_on_any_number_of_processes(capsys):
    found = []
    for processes in ("1", "2"):
        chosen = ["--cell", "small", "--load", "0.3", "--load", "1.0"]
        assert main(["sim", "batching", "--quick", *chosen, "--processes", processes]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["detail"])
    assert found[0] == found[1]
    assert [match["load"] for match in found[0]["matches"]] == [0.3, 1.0]


def test_an_unknown_cell_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["sim", "batching", "--cell", "nowhere"])
    assert "--cell: there are heavy, knee, launch" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_its_processes_end_with_it(number):
    command = [sys.executable, "-m", "bench", "sim", "batching", "--processes", "2"]
    # Standard error's end comes when the last of them is gone. A shell's background jobs inherit
    # that SIGINT is ignored.
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as run:
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        while len(children.read_text().split()) < 2 and run.poll() is None:
            os.sched_yield()
        run.send_signal(number)
        said = run.communicate(timeout=60)[1].decode()
    assert run.returncode == (130 if number == signal.SIGINT else -number)
    assert ("interrupted, nothing reported" in said) == (number == signal.SIGINT)
