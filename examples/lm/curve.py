"""Draws a run's losses as an SVG: python examples/lm/curve.py runs/lm out.svg

Small points are steps (or means of a few), the line is what was held out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 320, 52, 40, 16, 16
Points = Sequence[tuple[int, float]]


def read(run: Path, event: str) -> list[tuple[int, float]]:
    """(step, loss) of each such line; of a step that was done twice, the later one."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").open())
    return sorted({line["step"]: line["loss"] for line in lines if line["event"] == event}.items())


def svg(steps: Points, held_out: Points) -> str:
    last = max(step for step, _ in (*steps, *held_out))
    losses = [loss for _, loss in (*steps, *held_out)]
    low, high = int(min(losses)), int(max(losses)) + 1

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * step / last, 1)

    def y(loss: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low), 1)

    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for loss in range(low, high + 1):
        found.append(f'<path d="M{LEFT} {y(loss)}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        found.append(f'<text x="{LEFT - 8}" y="{y(loss) + 4}" text-anchor="end">{loss}</text>')
    for part in range(5):
        step = last * part // 4
        found.append(f'<text x="{x(step)}" y="{HEIGHT - 20}" text-anchor="middle">{step}</text>')
    found += [f'<circle cx="{x(s)}" cy="{y(v)}" r="1.6" fill="#9bb7d4"/>' for s, v in steps]
    line = " ".join(f"{x(step)},{y(loss)}" for step, loss in held_out)
    found.append(f'<polyline points="{line}" fill="none" stroke="#b3431e" stroke-width="2"/>')
    found += [f'<circle cx="{x(s)}" cy="{y(v)}" r="3" fill="#b3431e"/>' for s, v in held_out]
    legend = f'x="{WIDTH - RIGHT}" text-anchor="end"'
    found.append(f'<text {legend} y="{TOP + 14}" fill="#5d86b3">training loss, nats a token</text>')
    found.append(f'<text {legend} y="{TOP + 32}" fill="#b3431e">held-out loss</text>')
    found.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    return "\n".join([*found, "</svg>", ""])


def main(run: str, target: str) -> None:
    Path(target).write_text(svg(read(Path(run), "step"), read(Path(run), "evaluation")))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/lm/curve.py RUN FILE.svg")
    main(*sys.argv[1:])
