"""How pictures look: the colours of a light page and of a dark one, ours before all others.

Owns matplotlib's settings while a picture is drawn; nothing is set for others.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

OURS, FLOOR = "penstock", "floor"
# Told apart by those who see few colours, on white and on black (Okabe and Ito, lightness changed).
RIVALS = ("#c77d00", "#3f9c6e", "#b0568f", "#7a6fc0", "#a8713a", "#5f8fb4", "#9a9a2e", "#c0504d")
COLOURS = 128
MARKERS = "osDv^<>p"


@dataclass(frozen=True, slots=True)
class Theme:
    text: str
    back: str
    line: str
    ours: str
    floor: str


LIGHT = Theme("#1c2126", "#ffffff", "#dfe3e6", "#0b6e99", "#8b949c")
DARK = Theme("#e4e7ea", "#15181b", "#343a40", "#58b7e0", "#7d868e")


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws in one theme; a name has one colour in all of a record's pictures."""

    theme: Theme
    names: Mapping[str, int]

    def colour(self, who: str) -> str:
        if who.startswith(OURS):
            return self.theme.ours
        return self.theme.floor if who == FLOOR else RIVALS[self.names.get(who, 0) % len(RIVALS)]

    def line(self, who: str) -> dict[str, Any]:
        ours = who.startswith(OURS)
        return {
            "label": who,
            "color": self.colour(who),
            "linewidth": 2.6 if ours else 1.3,
            "linestyle": "--" if who == FLOOR else ":" if ours and who != OURS else "-",
            "marker": "o" if ours else MARKERS[self.names.get(who, 0) % len(MARKERS)],
            "markersize": 5 if ours else 3.5,
            "zorder": 5 if ours else 3,
        }


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    settings: dict[Any, Any] = {
        "figure.facecolor": theme.back,
        "axes.facecolor": theme.back,
        "axes.edgecolor": theme.line,
        "axes.labelcolor": theme.text,
        "axes.titlecolor": theme.text,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "text.color": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "font.family": "DejaVu Sans",
    }
    with pyplot.rc_context(settings):
        yield


def canvas(count: int, *, height: float = 3.4) -> tuple[Figure, Sequence[Axes]]:
    """A figure with so many panels, two beside each other."""
    columns = min(count, 2)
    rows = -(-count // columns)
    size = (7.6 if columns == 1 else 11.0, height * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    flat = list(axes.flat)
    for unused in flat[count:]:
        unused.set_visible(False)
    return figure, flat[:count]


def finish(axes: Axes, title: str, x: str, y: str, *, log_y: bool = False) -> None:
    axes.set_title(title)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", linewidth=0.7)
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    axes.xaxis.set_major_formatter(plain)
    if not log_y:
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_locator(NullLocator())


def png(figure: Figure, dpi: int) -> bytes:
    """In few colours, of which it has no more: a third of the bytes."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(COLOURS).save(packed, format="png", optimize=True)
    return packed.getvalue()


def legend(figure: Figure, axes: Axes) -> None:
    """One for all panels, beside them: it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside right upper")
