"""`bench report`: records as one HTML page and PNG pictures, or as the tables of the documents."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from bench.cli.compare import read
from bench.compare import CannotCompare
from bench.report.documents import BadDocument, filled, reasons
from bench.report.page import Entry, Picture, page
from bench.serving import ROOT

# The latest figures that are in the repository, and what shows them.
RECORDS = ROOT / "docs" / "records"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
# Of a record, what the document shows; each is a file in the repository, and small.
SHOWN = {
    "small-tensor": ("repetitions", "latency-over-throughput"),
    "device": ("p99-over-load", "batch-sizes"),
    "relay": ("p99-over-load",),
    "reload": ("reload-timeline",),
    "llm": ("roofline",),
    "sim-batching": ("goodput",),
    "sim-routing": ("p99-over-load",),
}
DPI, SMALL_DPI = 110, 70


def main(args: argparse.Namespace) -> int:
    files = args.files or sorted(RECORDS.glob("*.json"))
    if not files:
        print(f"bench report: there is no record in {RECORDS}; name files", file=sys.stderr)
        return 2
    try:
        records = {path: read(path) for path in files}
        if args.docs:
            return _document({path.stem: record for path, record in records.items()})
    except (CannotCompare, BadDocument) as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    why = reasons(RECORDS)
    entries = []
    for record in records.values():
        pictures = _pictures(record, DPI)
        for name, picture in pictures.items():
            (args.out / f"{record['scenario']}-{name}.png").write_bytes(picture.light)
        entries.append(Entry(record, pictures, why.get(record["scenario"], {})))
    target = args.out / "index.html"
    target.write_text(page(entries), encoding="utf-8")
    count = sum(len(entry.pictures) for entry in entries)
    print(f"{target}: {len(records)} records, {count} pictures beside it")
    return 0


def _document(records: Mapping[str, dict[str, Any]]) -> int:
    """Its tables and pictures anew. Raises BadDocument."""
    folder = RECORDS / "pictures"
    folder.mkdir(exist_ok=True)
    shown: dict[str, list[str]] = {}
    for name, record in records.items():
        for plot, picture in _pictures(record, SMALL_DPI, SHOWN.get(name, ())).items():
            file = folder / f"{name}-{plot}.png"
            file.write_bytes(picture.light)
            shown.setdefault(name, []).append(str(file.relative_to(DOCUMENT.parent)))
    text = filled(DOCUMENT.read_text(encoding="utf-8"), records, reasons(RECORDS), shown)
    DOCUMENT.write_text(text, encoding="utf-8")
    print(f"{DOCUMENT}: tables of {len(records)} records, {sum(map(len, shown.values()))} pictures")
    return 0


def _pictures(
    record: dict[str, Any], dpi: int, only: tuple[str, ...] | None = None
) -> dict[str, Picture]:
    """Drawn; none without matplotlib."""
    try:
        from bench.report import plots, style
    except ImportError:
        print("no pictures: pip install 'penstock[bench]'", file=sys.stderr)
        return {}
    from matplotlib import pyplot

    drawn: list[dict[str, bytes]] = []
    for theme in (style.LIGHT, style.DARK):
        found: dict[str, bytes] = {}
        for name, figure in plots.draw(record, theme).items():
            if only is None or name in only:
                found[name] = style.png(figure, dpi)
            pyplot.close(figure)
        drawn.append(found)
    light, dark = drawn
    return {name: Picture(light[name], dark[name]) for name in light}
