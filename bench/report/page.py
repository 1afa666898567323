"""One HTML page of records: figures, targets and pictures, with nothing loaded from elsewhere.

Owns the page's form. Invariant: all text of a record is escaped; a figure that is missing is shown
with its reason, never as zero.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from bench.tables import number

Record = Mapping[str, Any]
# Pictures by name, as PNG.
Pictures = Mapping[str, bytes]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; margin: .6rem 0 1rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid #ddd; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.met { color: #1a7f37; } .missed { color: #b42318; } .why { color: #666; }
code { background: #f3f3f3; padding: .1rem .3rem; border-radius: 3px; }
img { max-width: 100%; } nav a { margin-right: 1rem; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e6e6; background: #161616; } th, td { border-color: #3a3a3a; }
  code { background: #2a2a2a; } .why { color: #aaa; } .met { color: #57c26d; }
  .missed { color: #f0776c; } img { background: #fff; border-radius: 4px; } a { color: #6db8ff; }
}
"""


def page(entries: Sequence[tuple[Record, Pictures]]) -> str:
    sections = [_section(record, pictures) for record, pictures in entries]
    links = [
        f'<a href="#{_text(record["scenario"])}">{_text(record["scenario"])}</a>'
        for record, _ in entries
    ]
    head = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>Penstock, measured</title><style>{_STYLE}</style></head><body>"
    body = f"<h1>Penstock, measured</h1><nav>{''.join(links)}</nav>{''.join(sections)}"
    return f"{head}{body}</body></html>\n"


def command(record: Record) -> str:
    """What makes the record again."""
    scenario = str(record["scenario"])
    if scenario.startswith("sim-"):
        return f"python -m bench sim {scenario.removeprefix('sim-')}"
    return f"python -m bench run {scenario}"


def _section(record: Record, pictures: Pictures) -> str:
    parts = [
        f'<h2 id="{_text(record["scenario"])}">{_text(record["scenario"])}</h2>',
        f"<p><code>{_text(command(record))}</code></p>",
        _figures(record),
        _goals(record["detail"].get("goals", [])),
    ]
    for name, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(f'<p><img alt="{_text(name)}" src="data:image/png;base64,{data}"></p>')
    return "".join([*parts, _where(record)])


def _figures(record: Record) -> str:
    unit = record["unit"]
    rows = [("penstock", record["ours"]), ("floor", record["floor"]), *record["rivals"].items()]
    body = ""
    for who, figure in rows:
        if isinstance(figure, str):
            body += (
                f'<tr><td>{_text(who)}</td><td class="why" colspan="2">{_text(figure)}</td></tr>'
            )
        elif figure is not None:
            shown = f"{number(float(figure))} {unit}"
            body += f'<tr><td>{_text(who)}</td><td class="n">{_text(shown)}</td>'
            body += f'<td class="n">{_ratio(record, who, float(figure))}</td></tr>'
    metric = _text(str(record["metric"]))
    head = f'<tr><th></th><th class="n">{metric}</th><th class="n">ours against it</th></tr>'
    return f"<table>{head}{body}</table>"


def _ratio(record: Record, who: str, figure: float) -> str:
    """Above 1: ours is better. Older records do not say which way that is."""
    ours, higher = record["ours"], record["detail"].get("higher_is_better")
    if who == "penstock" or not ours or not figure or higher is None:
        return ""
    return f"{ours / figure if higher else figure / ours:.2f} ×"


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    if not goals:
        return ""
    body = ""
    for goal in goals:
        mark = '<td class="met">met</td>' if goal["met"] else '<td class="missed">not met</td>'
        cells = "".join(f"<td>{_text(str(goal[key]))}</td>" for key in ("what", "found", "wanted"))
        body += f"<tr>{cells}{mark}</tr>"
    return f"<table><tr><th>target</th><th>found</th><th>wanted</th><th></th></tr>{body}</table>"


def _where(record: Record) -> str:
    hardware = ", ".join(f"{key} {value}" for key, value in record["hardware"].items())
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    text = f"commit {record['commit']} · seed {record['seed']} · {hardware} · {versions}"
    return f'<p class="why">{_text(text)}</p>'


def _text(value: str) -> str:
    return html.escape(value)
