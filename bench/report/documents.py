"""The tables of docs/benchmarks.md, made from the records: none of them is typed by hand.

Owns the blocks between `<!-- record NAME -->` and `<!-- end -->`, where NAME is a record of
docs/records; what is around them is prose. A block `<!-- awaits NAME -->` stays as it was written
until there is that record. Pure but for `reasons`, which reads a file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from bench.report.figures import Reasons, Record, Table, command, place, targets
from bench.report.subjects import tables

_BLOCK = re.compile(r"<!-- (record|awaits) ([a-z0-9-]+) -->\n.*?<!-- end -->\n", re.DOTALL)


class BadDocument(Exception):
    """A block names a record that is not there."""


def reasons(folder: Path) -> Mapping[str, Reasons]:
    """By scenario: `reasons.toml` beside the records, if it is there."""
    file = folder / "reasons.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def filled(
    text: str,
    records: Mapping[str, Record],
    why: Mapping[str, Reasons],
    pictures: Mapping[str, list[str]],
) -> str:
    """The document with each block made anew. `pictures`: of a record, their paths from the
    document. Raises BadDocument."""

    def block(match: re.Match[str]) -> str:
        kind, name = match.groups()
        if name not in records:
            if kind == "awaits":
                return match[0]
            raise BadDocument(f"there is no record {name!r}; there are {', '.join(records)}")
        made = markdown(records[name], why.get(name, {}), pictures.get(name, []))
        return f"<!-- record {name} -->\n{made}<!-- end -->\n"

    return _BLOCK.sub(block, text)


def markdown(record: Record, why: Reasons, pictures: list[str]) -> str:
    text = "\n".join(_shown(found) for found in tables(record))
    goals = targets(record, why)
    if goals:
        met = {True: "met", False: "**not met**"}
        rows = [[goal.what, goal.found, goal.wanted, met[goal.met]] for goal in goals]
        text += "\n" + _table(["target", "found", "wanted", ""], rows, right=9)
        for goal in goals:
            if goal.reason:
                text += f"\nNot met, {goal.what}: {goal.reason}\n"
    for path in pictures:
        text += f"\n![{Path(path).stem.replace('-', ' ')}]({path})\n"
    return f"\n{text}\n<sub>`{command(record)}` · {place(record)}</sub>\n\n"


def _shown(found: Table) -> str:
    head = [found.corner, *found.columns]
    ours = "Penstock"
    rows = [[f"**{who}**" if who.startswith(ours) else who, *cells] for who, cells in found.rows]
    text = f"{found.title}\n\n" if found.title else ""
    text += _table(head, rows, right=1)
    for who, reason in found.absent.items():
        text += f"\n{who}: {reason}\n"
    return text


def _table(head: list[str], rows: list[list[str]], *, right: int) -> str:
    """`right`: the first column whose cells are numbers."""
    marks = ["---" if index < right else "---:" for index in range(len(head))]
    lines = [head, marks, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
