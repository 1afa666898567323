"""`python -m bench sim routing`: production's routers against other people's, in simulated time.

Prints a table per scenario and, last, one JSON line. The yardstick is the p99 latency; "ours" is
the router that the scenario's kind of pool is to be configured with, named in the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

from bench.record import Goal, Record
from bench.sim.routing_cost import decision_us
from bench.sim.routing_moves import ALGORITHMS, CHANGES, moves
from bench.sim.routing_run import FLOOR, Figures, run
from bench.sim.routing_scenarios import SCENARIOS, Scenario

REQUESTS, QUICK_REQUESTS = 30_000, 10_000
# By kind of scenario: our router first, what else of ours to show, then the rivals.
_BALANCERS = ("prequal", "p2c", "peak-ewma", "lvs-wlc")
_STATELESS = ("predictive", ("wlc",), _BALANCERS)
_SESSIONS = ("session", (), ("chwbl", "maglev", "p2c", "lvs-wlc"))
_PREFIXES = ("prefix", (), ("chwbl", "maglev", "p2c", "lvs-wlc"))


def contestants(scenario: Scenario) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    if not scenario.sessions:
        return _STATELESS
    return _PREFIXES if scenario.name == "prefixes" else _SESSIONS


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench sim routing",
        description="Compare the routing policies in simulated time.",
        epilog="example: python -m bench sim routing --quick --scenario antagonist",
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests and loads, < 50 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON line there too")
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default 1)")
    parser.add_argument(
        "--scenario",
        action="append",
        choices=[s.name for s in SCENARIOS],
        help="only this one; may be given more than once",
    )
    args = parser.parse_args(argv)
    requests = QUICK_REQUESTS if args.quick else REQUESTS
    chosen = [s for s in SCENARIOS if not args.scenario or s.name in args.scenario]
    began = time.monotonic()
    results = []
    for scenario in chosen:
        loads = scenario.loads[-2:] if args.quick else scenario.loads
        seeds = scenario.repeats if args.quick else 5
        results.append(_compare(scenario, loads, requests, range(args.seed, args.seed + seeds)))
    moved = _moves(20_000 if args.quick else 200_000)
    costs = decision_us()
    print("\nto choose among 8 replicas: " + ", ".join(f"{k} {v} us" for k, v in costs.items()))
    record = summary(results, moved, costs, args.seed, quick=args.quick)
    for goal in record.goals:
        met = "met " if goal.met else "MISSED"
        print(f"{met} {goal.what}: {goal.found} (wanted {goal.wanted})")
    line = record.line()
    print(f"{time.monotonic() - began:.0f} s\n{line}")
    if args.json is not None:
        args.json.write_text(line + "\n")
    return 0


def _compare(
    scenario: Scenario, loads: Sequence[float], requests: int, seeds: Sequence[int]
) -> dict[str, Any]:
    """Runs and prints one scenario. p99 in ms by policy and load, and what else there is to say."""
    ours, shown, rivals = contestants(scenario)
    floor = () if scenario.sessions or scenario.guarded else (FLOOR,)
    print(f"\n{scenario.name}: {scenario.says}")
    faulty = "  failed  detected  false  sent/request" if scenario.guarded else ""
    cached = "   hits" if scenario.sessions else ""
    head = "".join(f"{f'p99 @{load:g}':>11}" for load in loads)
    print(f"  {'':12}{head}   most/fair{cached}{faulty}")
    p99: dict[str, list[list[float]]] = {}  # by policy, load, seed
    for policy in (ours, *shown, *rivals, *floor):
        runs = [[run(scenario, policy, load, requests, seed) for seed in seeds] for load in loads]
        p99[policy] = [[1e3 * figures.quantile(0.99) for figures in group] for group in runs]
        flat = [figures for group in runs for figures in group]
        mark = "*" if policy == ours else " "
        cells = "".join(f"{_mean(group):8.1f} ms" for group in p99[policy])
        print(f" {mark}{policy:12}{cells}{_extras(scenario, flat)}", flush=True)
    ratios, texts = [], []
    for place in range(len(loads)):
        best = min(rivals, key=lambda rival: _mean(p99[rival][place]))
        ratio, error = _paired(p99[best][place], p99[ours][place])
        ratios.append(ratio)
        texts.append(f"{ratio:.2f}x" + (f" ± {error:.2f}" if error else "") + f" {best}")
    print(f"  the best rival's p99 over ours: {', '.join(texts)}", flush=True)
    return {
        "scenario": scenario.name,
        "ours": ours,
        "loads": list(loads),
        "p99_ms": {policy: [_mean(group) for group in rows] for policy, rows in p99.items()},
        "ratios": ratios,
    }


def _paired(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """Their p99 over ours, of the same seeds, and half of its 95 % interval; 0 for one seed."""
    logs = [log(their / our) for their, our in zip(theirs, ours, strict=True)]
    mean = _mean(logs)
    if len(logs) < 2:
        return exp(mean), 0.0
    deviation = sqrt(sum((x - mean) ** 2 for x in logs) / (len(logs) - 1))
    return exp(mean), 1.96 * deviation / sqrt(len(logs)) * exp(mean)


def _extras(scenario: Scenario, runs: Sequence[Figures]) -> str:
    text = f"{_mean([f.spread for f in runs]):12.2f}"
    if scenario.sessions:
        text += f"{sum(f.hits for f in runs) / max(1, sum(f.lookups for f in runs)):7.1%}"
    if scenario.guarded:
        found = [f.detected for f in runs if f.detected is not None]
        seconds = f"{1e3 * _mean(found):7.0f} ms" if found else f"{'-':>10}"
        requests = sum(f.requests for f in runs)
        text += (
            f"{sum(f.failed for f in runs) / requests:8.2%}{seconds}"
            f"{sum(f.false_ejections for f in runs):7d}"
            f"{sum(f.attempts for f in runs) / requests:14.3f}"
        )
    return text


def _moves(sessions: int) -> dict[str, dict[str, float]]:
    print(f"\nsession moves over the ideal, {sessions:,} sessions")
    print(f"  {'':12}" + "".join(f"{change:>12}" for change in CHANGES))
    table = {}
    for algorithm in ALGORITHMS:
        row = table[algorithm] = {c: round(moves(algorithm, c, sessions), 3) for c in CHANGES}
        mark = "*" if algorithm == "session" else " "
        print(f" {mark}{algorithm:12}" + "".join(f"{value:12.3f}" for value in row.values()))
    return table


def summary(
    results: Sequence[dict[str, Any]],
    moved: dict[str, dict[str, float]],
    costs: dict[str, float],
    seed: int,
    *,
    quick: bool,
) -> Record:
    """Geometric means over scenarios and loads. Not every rival takes part in every scenario: its
    value is ours times what it is worse in those where it does."""
    ours = _geometric([value for r in results for value in r["p99_ms"][r["ours"]]])
    worse: dict[str, list[float]] = {}
    for result in results:
        own = result["p99_ms"][result["ours"]]
        for name, values in result["p99_ms"].items():
            worse.setdefault(name, []).extend(v / o for v, o in zip(values, own, strict=True))
    names = {name for r in results for name in contestants(_named(r["scenario"]))[2]}
    worst = min(results, key=lambda r: min(r["ratios"]))
    most_moved = max(moved["session"].values())
    return Record(
        scenario="sim-routing",
        metric="p99 latency, geometric mean over scenarios and loads",
        unit="ms",
        higher_is_better=False,
        seed=seed,
        ours=ours,
        floor=ours * _geometric(worse[FLOOR]) if FLOOR in worse else None,
        rivals={name: ours * _geometric(worse[name]) for name in sorted(names)},
        goals=[
            Goal.least(
                f"best rival's p99 over ours, at its worst ({worst['scenario']})",
                min(worst["ratios"]),
                0.98,
                "x",
            ),
            Goal.most("session moves over the ideal, at their most", most_moved, 1.05, "x"),
        ],
        detail={
            "quick": quick,
            "best_rival_of_each_scenario_over_ours": _geometric(
                [ratio for result in results for ratio in result["ratios"]]
            ),
            "moves_over_ideal": moved,
            "decision_us": costs,
            "scenarios": {r["scenario"]: {k: r[k] for k in _KEPT} for r in results},
        },
    )


_KEPT = ("ours", "loads", "ratios", "p99_ms")


def _named(name: str) -> Scenario:
    return next(s for s in SCENARIOS if s.name == name)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _geometric(values: Sequence[float]) -> float:
    return exp(_mean([log(value) for value in values]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
