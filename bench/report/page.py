"""One HTML page of records: figures, targets and pictures, with nothing loaded from elsewhere.

Owns the page's form, for light screens and dark ones. Invariant: all text of a record is escaped; a
figure that is missing is shown with its reason, never as zero.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.report.figures import OURS, Reasons, Record, Table, command, place, targets
from bench.report.subjects import tables
from bench.tables import number


@dataclass(frozen=True, slots=True)
class Picture:
    """As PNG, for a light page and for a dark one."""

    light: bytes
    dark: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    record: Record
    pictures: Mapping[str, Picture] = field(default_factory=dict[str, Picture])
    reasons: Reasons = field(default_factory=dict[str, str])


_STYLE = """
:root { color-scheme: light dark; --text: #1c2126; --soft: #5d6770; --line: #dfe3e6; --back: #fff;
  --card: #f6f8f9; --ours: #0b6e99; --good: #1a7f37; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ea; --soft: #9aa4ad; --line: #343a40;
  --back: #15181b; --card: #1d2226; --ours: #58b7e0; --good: #57c26d; --bad: #f0776c; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 2rem 1rem;
  color: var(--text); background: var(--back); }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.25rem; margin: 0; }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.ours td { color: var(--ours); font-weight: 600; }
.met, .missed { white-space: nowrap; } .met { color: var(--good); } .missed { color: var(--bad); }
.why { color: var(--soft); font-size: .85rem; } .wide { overflow-x: auto; }
code { background: var(--card); padding: .15rem .4rem; border-radius: 4px; }
img { max-width: 100%; display: block; margin: 1.2rem 0; } a { color: var(--ours); }
"""


def page(entries: Sequence[Entry]) -> str:
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>Penstock, measured</title><style>{_STYLE}</style></head><body>"
    body = "<h1>Penstock, measured</h1>"
    body += '<p class="why">Each scenario is one command, and runs ours beside rivals and beside a '
    body += "floor: the least program that does the job. A ratio above 1 means that ours is better."
    body += f"</p>{_overview(entries)}{''.join(_section(entry) for entry in entries)}"
    return f"{head}{body}</body></html>\n"


def _overview(entries: Sequence[Entry]) -> str:
    """A row a scenario: what it found, and how many of its targets are met."""
    rows = ""
    for entry in entries:
        record, goals = entry.record, targets(entry.record, entry.reasons)
        name, met = _text(record["scenario"]), sum(goal.met for goal in goals)
        mark = "met" if met == len(goals) else "missed"
        rows += f'<tr><td><a href="#{name}">{name}</a></td><td>{_text(record["metric"])}</td>'
        rows += f'<td class="n">{_figure(record["ours"], record["unit"])}</td>'
        for key in ("ratio_best_rival", "ratio_floor"):
            ratio = record.get(key)
            rows += f'<td class="n">{"" if ratio is None else f"{ratio:.2f} ×"}</td>'
        rows += f'<td class="{mark}">{met} of {len(goals)}</td></tr>' if goals else "<td></td></tr>"
    head = "<tr><th>scenario</th><th>metric</th><th class=n>Penstock</th>"
    head += "<th class=n>best rival</th><th class=n>floor</th><th>targets met</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'


def _section(entry: Entry) -> str:
    record = entry.record
    name = _text(record["scenario"])
    parts = [
        f'<section id="{name}"><h2>{name}</h2><p><code>{_text(command(record))}</code></p>',
        *(_figures(found) for found in tables(record)),
        _targets(entry),
    ]
    parts += [_picture(title, picture) for title, picture in entry.pictures.items()]
    return "".join([*parts, f'<p class="why">{_text(place(record))}</p></section>'])


def _figures(found: Table) -> str:
    head = "".join(f'<th class="n">{_text(column)}</th>' for column in found.columns)
    body = ""
    for who, cells in found.rows:
        numbers = "".join(f'<td class="n">{_text(cell)}</td>' for cell in cells)
        body += f"<tr{' class=ours' if who.lower().startswith(OURS) else ''}>"
        body += f"<td>{_text(who)}</td>{numbers}</tr>"
    for who, reason in found.absent.items():
        wide = f'<td class="why" colspan="{len(found.columns)}">{_text(reason)}</td>'
        body += f"<tr><td>{_text(who)}</td>{wide}</tr>"
    title = f"<p>{_text(found.title)}</p>" if found.title else ""
    corner = f"<th>{_text(found.corner)}</th>"
    return f'{title}<div class="wide"><table><tr>{corner}{head}</tr>{body}</table></div>'


def _targets(entry: Entry) -> str:
    body = ""
    for goal in targets(entry.record, entry.reasons):
        mark = '<td class="met">✓ met' if goal.met else '<td class="missed">✗ not met'
        why = f'<div class="why">{_text(goal.reason)}</div>' if goal.reason else ""
        body += f'<tr><td>{_text(goal.what)}{why}</td><td class="n">{_text(goal.found)}</td>'
        body += f'<td class="n">{_text(goal.wanted)}</td>{mark}</td></tr>'
    head = '<tr><th>target</th><th class="n">found</th><th class="n">wanted</th><th></th></tr>'
    return f"<table>{head}{body}</table>" if body else ""


def _picture(title: str, picture: Picture) -> str:
    light, dark = (
        f"data:image/png;base64,{base64.b64encode(png).decode()}"
        for png in (picture.light, picture.dark)
    )
    source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{source}<img alt="{_text(title)}" src="{light}"></picture>'


def _figure(value: float | None, unit: str) -> str:
    return "not measured" if value is None else _text(f"{number(value)} {unit}")


def _text(value: str) -> str:
    return html.escape(value)
