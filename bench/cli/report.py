"""`bench report`: records as one HTML page and PNG pictures."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from bench.cli.compare import read
from bench.compare import CannotCompare
from bench.report.page import Pictures, page
from bench.serving import ROOT

# The latest figures that are in the repository.
RECORDS = ROOT / "docs" / "records"


def main(args: argparse.Namespace) -> int:
    files = args.files or sorted(RECORDS.glob("*.json"))
    if not files:
        print(f"bench report: there is no record in {RECORDS}; name files", file=sys.stderr)
        return 2
    try:
        records = [read(path) for path in files]
    except CannotCompare as error:
        print(f"bench report: {error}", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    entries = [(record, _pictures(record, args.out)) for record in records]
    target = args.out / "index.html"
    target.write_text(page(entries), encoding="utf-8")
    count = sum(len(pictures) for _, pictures in entries)
    print(f"{target}: {len(records)} records, {count} pictures beside it")
    return 0


def _pictures(record: dict[str, Any], folder: Path) -> Pictures:
    """Drawn, and written as files too; none without matplotlib."""
    try:
        from bench.report import plots
    except ImportError:
        print("no pictures: pip install 'penstock[bench]'", file=sys.stderr)
        return {}
    from matplotlib import pyplot

    found: dict[str, bytes] = {}
    for name, figure in plots.draw(record).items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110)
        pyplot.close(figure)
        found[name] = png.getvalue()
        (folder / f"{record['scenario']}-{name}.png").write_bytes(found[name])
    return found
