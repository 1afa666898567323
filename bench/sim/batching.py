"""`python -m bench sim batching`: the production batcher against other servers' rules and oracles.

Prints, per cell and load, the share of requests answered within the deadline, and last one JSON
line. Ours learns its curves and rates in the run; rivals are tuned per load, on traces apart. Each
cell's loads are played by processes of their own, which share nothing: the figures depend on the
seed alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

from bench.record import Goal, Record
from bench.sim.batch_contest import (
    FULL,
    OURS,
    QUICK,
    QUICK_WARM,
    WARM,
    Match,
    half_width,
    mean,
    play,
)
from bench.sim.batch_workload import Cell

_LOADS = (0.3, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2)
_QUICK_LOADS = (0.3, 0.8, 1.0, 1.1)
_TIE = 0.0005  # leads of less are within what one run can tell
_FLOOR = "greedy"
_BEATEN = ("window", "triton", "bentoml")  # those that the target names


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench sim batching",
        description="Compare batching rules by their goodput under a deadline, in simulated time.",
        epilog="example: python -m bench sim batching --quick --json figures.json",
    )
    parser.add_argument("--quick", action="store_true", help="three cells, within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON line there too")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw there (matplotlib)")
    parser.add_argument("--seed", type=int, default=1, help="of the first trace (default 1)")
    parser.add_argument("--cell", action="append", metavar="NAME", help="only cells of this name")
    parser.add_argument("--load", action="append", type=float, help="only this share of L1")
    parser.add_argument(
        "--processes",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="P",
        help="to share the work (default: one a core)",
    )
    args = parser.parse_args(argv)
    if args.processes < 1:
        parser.error("--processes: at least 1")
    if args.plots is not None:
        from bench.sim.batch_plots import draw  # before the work: it may not be installed
    requests, tune, count = (4_000, 2_500, 3) if args.quick else (20_000, 5_000, 4)
    warm = QUICK_WARM if args.quick else WARM
    loads = args.load or (_QUICK_LOADS if args.quick else _LOADS)
    cells = [c for c in (QUICK if args.quick else FULL) if not args.cell or c.name in args.cell]
    if not cells:
        parser.error(f"--cell: there are {', '.join(sorted({c.name for c in FULL}))}")
    began = time.monotonic()
    matches: list[Match] = []
    seeds = range(args.seed, args.seed + count)
    turns = [
        partial(play, c, x, requests, seeds, tune=tune, warm=warm) for c in cells for x in loads
    ]
    each = _each(turns, min(args.processes, len(turns)))
    for cell in cells:
        played = list(islice(each, len(loads)))
        matches += played
        print(table(cell, played), flush=True)
    record = summary(matches, args.seed, quick=args.quick)
    for goal in record.goals:
        print(
            f"{'met ' if goal.met else 'MISSED'} {goal.what}: {goal.found} (wanted {goal.wanted})"
        )
    line = record.line()
    print(f"{time.monotonic() - began:.0f} s\n{line}")
    if args.json is not None:
        args.json.write_text(line + "\n")
    if args.plots is not None:
        draw(matches, args.plots)
    return 0


def _each(turns: Sequence[Callable[[], Match]], processes: int) -> Iterator[Match]:
    """What each turn comes to, in order."""
    if processes == 1:
        yield from (turn() for turn in turns)
        return
    # Their matrices are small: a BLAS that shares them between cores only waits.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, initializer=_follow)
    try:
        yield from pool.map(_take, turns)
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()  # else its turn would be awaited
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _take(turn: Callable[[], Match]) -> Match:
    return turn()


def _follow() -> None:
    """End with the parent, however it ends; Ctrl-C is for it alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def table(cell: Cell, matches: Sequence[Match]) -> str:
    """Goodput in percent, with half the confidence interval; then medians of the latency."""
    title = (
        f"\n{describe(cell)}: {len(matches[0].outcomes[OURS])} traces, deadline "
        f"{cell.slo_s * 1e3:g} ms, L1 {cell.capacity:,.0f} requests/s in batches of {cell.best}"
    )
    lines = [title, f"  {'% in time at load':20}" + "".join(f"{m.load:>14g}" for m in matches)]
    names = sorted(matches[0].outcomes, key=lambda n: (n != OURS, -mean_of(matches, n)))
    for name in names:
        shares = [[o.goodput for o in match.outcomes[name]] for match in matches]
        cells = [f"{100 * mean(share):8.2f} ±{100 * half_width(share):4.2f}" for share in shares]
        lines.append(f"  {name:20}" + "".join(cells))
    if matches[0].l3 is not None:
        lines.append(f"  {'L3, no foresight':20}" + _row([m.l3 or 0.0 for m in matches]))
    if matches[0].l2:
        lines.append(f"  {'L2, clairvoyant':20}" + _row([mean(m.l2) for m in matches]))
    leads = [mean(m.leads(m.best_rival)) for m in matches]
    lines.append(f"  {'lead over the best':20}" + _row(leads))
    for name in (OURS, *_BEATEN):
        medians = [mean([o.latency_p50 for o in m.outcomes[name]]) for m in matches]
        lines.append(f"  {'p50 ms ' + name:20}" + "".join(f"{1e3 * v:8.1f}      " for v in medians))
    return "\n".join(lines)


def _row(values: Sequence[float]) -> str:
    return "".join(f"{100 * value:8.2f}      " for value in values)


def describe(cell: Cell) -> str:
    text = f"{cell.name}, {cell.replicas} replica{'s' if cell.replicas > 1 else ''}"
    text += ", bursty" if cell.bursty else ""
    return text + (f", noise {cell.noise:g}" if cell.noise else "")


def mean_of(matches: Sequence[Match], rule: str) -> float:
    return mean([match.goodput(rule) for match in matches])


def summary(matches: Sequence[Match], seed: int, *, quick: bool) -> Record:
    """Means over cells and loads. The floor is the least rule: a free slot takes what waits."""
    names = [name for name in matches[0].outcomes if name not in (OURS, _FLOOR)]
    return Record(
        scenario="sim-batching",
        metric="goodput under the deadline, mean over cells and loads",
        unit="share of requests",
        higher_is_better=True,
        seed=seed,
        ours=mean_of(matches, OURS),
        floor=mean_of(matches, _FLOOR),
        rivals={name: mean_of(matches, name) for name in names},
        goals=goals(matches),
        detail={"quick": quick, "matches": [detail(match) for match in matches]},
    )


def goals(matches: Sequence[Match]) -> list[Goal]:
    """The targets, each at its worst."""
    found = []
    within = [match for match in matches if match.load <= 1.1]
    for oracle, wanted in (("L3", 0.97), ("L2", 0.90)):
        ratios = {m: ratio for m in within if (ratio := of_oracle(m, oracle)) is not None}
        if ratios:
            worst = min(ratios, key=lambda match: ratios[match])
            found.append(
                Goal(
                    what=f"share of {oracle} up to load 1.1",
                    wanted=f">= {wanted:.0%}",
                    found=f"{ratios[worst]:.2%} ({describe(worst.cell)}, load {worst.load:g})",
                    met=ratios[worst] >= wanted,
                )
            )
    for rival in _BEATEN:
        worst = min(matches, key=lambda match: mean(match.leads(rival)))
        lead, doubt = mean(worst.leads(rival)), half_width(worst.leads(rival))
        found.append(
            Goal(
                what=f"ahead of {rival} in every cell at every load",
                wanted="lead >= 0, within what the traces can tell",
                found=f"{lead:+.2%} ±{doubt:.2%} ({describe(worst.cell)}, load {worst.load:g})",
                met=lead >= -max(_TIE, doubt),
            )
        )
    return found


def of_oracle(match: Match, oracle: str) -> float | None:
    if oracle == "L3":
        return match.ours / match.l3 if match.l3 else None
    return match.ours / mean(match.l2) if match.l2 else None


def detail(match: Match) -> dict[str, Any]:
    ours = match.outcomes[OURS]
    return {
        "cell": describe(match.cell),
        "load": match.load,
        "goodput": {name: match.goodput(name) for name in match.outcomes},
        "half_width": half_width([outcome.goodput for outcome in ours]),
        "l3": match.l3,
        "l2": mean(match.l2) if match.l2 else None,
        "latency_p50_ms": 1e3 * mean([outcome.latency_p50 for outcome in ours]),
        "latency_p99_ms": 1e3 * mean([outcome.latency_p99 for outcome in ours]),
        "mean_batch": mean([outcome.mean_batch for outcome in ours]),
        "efficiency": mean([outcome.efficiency for outcome in ours]),
        "tuned": match.tuned,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
