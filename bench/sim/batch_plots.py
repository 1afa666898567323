"""Curves of goodput over load, one picture per cell. Needs matplotlib, which nothing else does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from bench.sim.batch_contest import OURS, Match, half_width, mean

matplotlib.use("Agg")
from matplotlib import pyplot


def draw(matches: Sequence[Match], folder: Path) -> list[Path]:
    """Writes PNG files; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for cell in dict.fromkeys(match.cell for match in matches):
        played = [match for match in matches if match.cell == cell]
        loads = [match.load for match in played]
        figure, axes = pyplot.subplots(figsize=(7.0, 4.5), layout="constrained")
        for name in played[0].outcomes:
            shares = [[o.goodput for o in match.outcomes[name]] for match in played]
            axes.errorbar(
                loads,
                [100.0 * mean(share) for share in shares],
                yerr=[100.0 * half_width(share) for share in shares],
                label=name,
                linewidth=2.5 if name == OURS else 1.0,
                zorder=3 if name == OURS else 2,
            )
        if played[0].l3 is not None:
            bound = [100.0 * (match.l3 or 0.0) for match in played]
            axes.plot(loads, bound, "k:", label="L3, no foresight")
        if played[0].l2:
            bound = [100.0 * mean(match.l2) for match in played]
            axes.plot(loads, bound, "k--", label="L2, clairvoyant")
        kind = f"{cell.name}-{cell.replicas}" + ("-bursty" if cell.bursty else "")
        kind += f"-noise{cell.noise:g}" if cell.noise else ""
        axes.set(xlabel="load / L1", ylabel="% in time", ylim=(0, 102), title=kind)
        axes.legend(fontsize=7)
        paths.append(folder / f"batching-{kind}.png")
        figure.savefig(paths[-1], dpi=150)
        pyplot.close(figure)
    return paths
