"""One cell, one load: every rule over the same traces, tuned where its operators would tune it.

Owns the cells, the tuning grids and the seeds. Tuning uses a trace of its own; results come from
others. Invariant: all rules see the same arrivals and, by batch, the same noise.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, sqrt

from bench.sim.batch_clairvoyant import clairvoyant
from bench.sim.batch_foresightless import foresightless
from bench.sim.batch_rivals import Bento, Clipper, Early, Mosec, Nexus, Triton, Window
from bench.sim.batch_rules import Greedy, Penstock
from bench.sim.batch_workload import Cell, arrivals, knee, linear, padded
from bench.sim.batch_world import Outcome, Rule, World

OURS = "penstock"
_LEARN = (OURS, "bentoml", "clipper")
# Deadlines. Rules that learn have so long to do it; the others were tuned on traces of their own.
WARM, QUICK_WARM = 100.0, 30.0
_RUN_IN = 5.0  # deadlines; what comes before is not counted for the others either
_TUNING = 7_919  # added to the seed of the tuning trace

_LAUNCH = linear(8.0, 0.25, 160)
_TIGHT = linear(8.0, 0.25, 68)
_SMALL = linear(2.0, 1.0, 16)
_PADDED = padded(8.0, 0.25, 128)
_KNEE = knee(6.0, 0.2, 32, 128)
_HEAVY = linear(20.0, 0.1, 256)

QUICK = (
    Cell("tight", _TIGHT, 0.025),
    Cell("small", _SMALL, 0.010),
    Cell("launch", _LAUNCH, 0.050, replicas=4),
)
FULL = (
    Cell("launch", _LAUNCH, 0.050),
    Cell("tight", _TIGHT, 0.025),
    Cell("small", _SMALL, 0.010),
    Cell("padded", _PADDED, 0.050),
    Cell("knee", _KNEE, 0.030),
    Cell("launch", _LAUNCH, 0.050, bursty=True),
    Cell("small", _SMALL, 0.010, bursty=True),
    *(Cell("launch", _LAUNCH, 0.050, replicas=n) for n in (2, 4, 8)),
    *(Cell("small", _SMALL, 0.010, replicas=n) for n in (2, 4, 8)),
    Cell("padded", _PADDED, 0.050, replicas=4),
    Cell("heavy", _HEAVY, 0.050, replicas=4),
    Cell("launch", _LAUNCH, 0.050, replicas=4, bursty=True),
    Cell("tight", _TIGHT, 0.025, replicas=8, bursty=True),
    Cell("launch", _LAUNCH, 0.050, noise=0.1),
    Cell("launch", _LAUNCH, 0.050, replicas=4, noise=0.1),
)

Maker = Callable[[Cell], Rule]


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """Results by rule, one outcome per seed. `l2`, `l3`: goodput of the oracles on the same traces,
    where they exist. `tuned`: the knobs that tuning chose."""

    cell: Cell
    load: float
    outcomes: dict[str, list[Outcome]]
    tuned: dict[str, str]
    l2: list[float]
    l3: float | None

    def goodput(self, rule: str) -> float:
        return mean([outcome.goodput for outcome in self.outcomes[rule]])

    @property
    def ours(self) -> float:
        return self.goodput(OURS)

    @property
    def best_rival(self) -> str:
        return max((name for name in self.outcomes if name != OURS), key=self.goodput)

    def leads(self, rival: str) -> list[float]:
        """Ours less the rival's, seed by seed."""
        pairs = zip(self.outcomes[OURS], self.outcomes[rival], strict=True)
        return [ours.goodput - theirs.goodput for ours, theirs in pairs]


def play(
    cell: Cell, load: float, requests: int, seeds: Sequence[int], *, tune: int, warm: float
) -> Match:
    """`requests` per seed on one replica, half as many more for each further one; tuning traces
    have `tune`. `warm`: the time to learn, in deadlines."""
    rate = load * cell.capacity
    scale = (1 + cell.replicas) / 2
    makers: dict[str, Maker] = {OURS: Penstock}
    tuned: dict[str, str] = {}
    run_in = _RUN_IN * cell.slo_s
    trial = arrivals(cell, load, int(tune * scale + run_in * rate), seeds[0] + _TUNING)
    for name, grid in _grids(cell).items():
        tuned[name], makers[name] = _best(cell, grid, trial, run_in)
    makers |= {
        "bentoml": lambda cell: Bento(cell, cell.largest),
        "nexus": lambda cell: Nexus(cell, load),
        "clipper": Clipper,
        "greedy": Greedy,
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in makers}
    l2: list[float] = []
    learnt = warm * cell.slo_s
    for seed in seeds:
        trace = arrivals(cell, load, int(requests * scale + learnt * rate), seed)
        short = trace[bisect_left(trace, learnt - run_in) :]
        for name, maker in makers.items():
            seen = trace if name in _LEARN else short
            outcomes[name].append(World(cell, maker(cell), seen, seed, learnt).run())
        if cell.replicas == 1 and not cell.noise:
            counted = trace[bisect_left(trace, learnt) :]
            l2.append(clairvoyant(counted, cell.curve, cell.slo_s) / len(counted))
    l3 = None
    if l2 and not cell.bursty:
        l3 = foresightless(rate, cell.curve, cell.slo_s)
    return Match(cell, load, outcomes, tuned, l2, l3)


def _grids(cell: Cell) -> dict[str, dict[str, Maker]]:
    """By rival, what its operator would try, by name."""
    slo, best = cell.slo_s, cell.best
    windows = [0.0, slo / 8.0, slo / 4.0, slo / 2.0]
    timeouts = [slo, slo - cell.curve[best]]
    sizes = sorted({best, cell.largest})
    grids: dict[str, dict[str, Maker]] = {"window": {}, "triton": {}, "early": {}, "mosec": {}}
    for window, size in product(windows, sizes):
        for timeout in timeouts:
            name = f"{window * 1e3:g} ms, {size}, timeout {timeout * 1e3:g} ms"
            grids["window"][name] = _maker(Window, window, timeout, size)
            for preferred in (None, max(best // 2, 2)):
                grids["triton"][f"{name}, preferred {preferred}"] = _maker(
                    Triton, window, timeout, size, preferred
                )
        grids["early"][f"{window * 1e3:g} ms, {size}"] = _maker(Early, window, size)
        grids["mosec"][f"{window * 1e3:g} ms, {size}"] = _maker(Mosec, window, size)
    return grids


def _maker(rule: Callable[..., Rule], *knobs: float | int | None) -> Maker:
    return lambda cell: rule(cell, *knobs)


def _best(
    cell: Cell, grid: dict[str, Maker], trial: Sequence[float], warm: float
) -> tuple[str, Maker]:
    """The knobs with the highest goodput; among equals, the lowest median latency."""
    chosen, best = "", (-inf, -inf)
    for name, maker in grid.items():
        outcome = World(cell, maker(cell), trial, 0, warm).run()
        score = (outcome.goodput, -outcome.latency_p50)
        if score > best:
            chosen, best = name, score
    return chosen, grid[chosen]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % confidence interval of the mean (Student's t)."""
    count = len(values)
    if count < 2:
        return inf
    middle = mean(values)
    deviation = sqrt(sum((value - middle) ** 2 for value in values) / (count - 1))
    quantiles = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
    return quantiles[min(count - 2, len(quantiles) - 1)] * deviation / sqrt(count)
