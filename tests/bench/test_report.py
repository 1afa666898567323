"""Records as a page and pictures: nothing is lost, nothing is made up, all text is escaped."""

from __future__ import annotations

import json
import re

import pytest

from bench.__main__ import main
from bench.cli.compare import read
from bench.cli.report import DOCUMENT, RECORDS, SHOWN
from bench.report.documents import BadDocument, filled, reasons
from bench.report.figures import command, table
from bench.report.page import Entry, Picture, page
from bench.serving import ROOT


def record(**changes):
    found = {
        "scenario": "relay",
        "metric": "rate <64>",
        "unit": "req/s",
        "ours": 200.0,
        "floor": 400.0,
        "rivals": {"envoy": 100.0, "nginx": "unavailable: not <installed>"},
        "ratio_best_rival": 2.0,
        "ratio_floor": 0.5,
        "detail": {
            "higher_is_better": True,
            "goals": [{"what": "g", "found": "1 ×", "wanted": "≥ 2 ×", "met": False}],
            "repetitions": {
                "rate": {
                    "unit": "req/s",
                    "higher_is_better": True,
                    "values": {"penstock": [190.0, 210.0], "envoy": [100.0]},
                }
            },
        },
        "commit": "abc",
        "hardware": {"cores": 2},
        "versions": {"python": "3.11"},
        "seed": 1,
    }
    return {**found, **changes}


def test_a_page_has_every_figure_and_what_is_missing_with_its_reason():
    why = {"g": "the parse takes <half>"}
    text = page([Entry(record(), {"bars": Picture(b"\x89PNG", b"\x89DARK")}, why)])
    for part in ("200 req/s", "2.00 ×", "0.50 ×", "not met", "commit abc", "bench run relay"):
        assert part in text
    assert "unavailable: not &lt;installed&gt;" in text
    assert "the parse takes &lt;half&gt;" in text
    assert "data:image/png;base64," in text and "prefers-color-scheme: dark" in text
    assert not re.search(r'(src|href)="http', text)  # nothing is loaded


def test_a_table_has_ours_first_and_the_floor_last_with_what_each_cost():
    found = record()
    series = found["detail"]["repetitions"]["rate"]["values"]
    found["detail"]["repetitions"]["rate"]["values"] = {"floor": [9.0], **series}
    found["detail"]["cpu_us_per_request"] = {"penstock": 20.0}
    made = table(found)
    assert made.columns == ["rate, req/s", "CPU per request, µs"]
    assert made.rows == [("Penstock", ["200", "20"]), ("envoy", ["100", ""]), ("floor", ["9", ""])]
    assert made.absent == {"nginx": "unavailable: not <installed>"}
    del found["detail"]["repetitions"]
    assert table(found).rows[0] == ("Penstock", ["200", "20"])


def test_blocks_of_a_document_are_made_anew_and_the_prose_stays():
    text = "before\n<!-- record relay -->\nold\n<!-- end -->\nafter\n"
    made = filled(text, {"relay": record()}, {"relay": {"g": "slow"}}, {"relay": ["p/x.png"]})
    assert made.startswith("before\n") and made.endswith("after\n") and "old" not in made
    for part in ("| **Penstock** | 200 |", "**not met**", "Not met, g: slow", "(p/x.png)"):
        assert part in made
    assert (
        filled(made, {"relay": record()}, {"relay": {"g": "slow"}}, {"relay": ["p/x.png"]}) == made
    )
    with pytest.raises(BadDocument, match="'relay'"):
        filled(text, {}, {}, {})


def test_a_block_that_awaits_its_record_is_kept_until_there_is_one():
    text = "a\n<!-- awaits relay -->\ntyped\n<!-- end -->\nb\n"
    assert filled(text, {}, {}, {}) == text
    made = filled(text, {"relay": record()}, {}, {})
    assert made.startswith("a\n<!-- record relay -->\n") and made.endswith("<!-- end -->\nb\n")
    assert "| **Penstock** | 200 |" in made and "typed" not in made
    with pytest.raises(BadDocument, match="'relay'"):
        filled(made, {}, {}, {})


def test_the_documents_tables_are_those_of_the_records():
    records = {path.stem: read(path) for path in RECORDS.glob("*.json")}
    pictures = {
        name: [f"records/pictures/{name}-{plot}.png" for plot in SHOWN.get(name, ())]
        for name in records
    }
    text = DOCUMENT.read_text()
    assert filled(text, records, reasons(RECORDS), pictures) == text, (
        "make them anew: python -m bench report --docs"
    )
    for path in (found for one in pictures.values() for found in one):
        assert (ROOT / "docs" / path).stat().st_size < 100_000


def test_every_reason_is_of_a_target_that_is_missed():
    why = reasons(RECORDS)
    for name, found in why.items():
        goals = read(RECORDS / f"{name}.json")["detail"]["goals"]
        assert set(found) <= {goal["what"] for goal in goals if not goal["met"]}, name


def test_a_record_names_its_command():
    assert command(record(scenario="sim-routing")) == "python -m bench sim routing"


def test_the_command_writes_a_page_and_pictures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "r.json"
    curve = [{"rate": 10.0, "answered": 10.0, "p50": 0.001, "p99": 0.002}]
    detail = {
        **record()["detail"],
        "curve": {"penstock": curve, "envoy": curve},
        "timeline": {"bins": [[0.0, 1.0, 2.0], [0.1, 1.0, 3.0]], "published": [0.05]},
        "matches": [
            {"cell": "c", "load": load, "mean_batch": 3.0, "goodput": {"penstock": 1.0}, "l3": 1.0}
            for load in (0.3, 0.9)
        ],
        "machine": {"bytes_s": 34e9, "flops": 420e9},
        "cells": {"8 at once": {"penstock": {"bandwidth": 0.5, "flops": 0.2}}},
    }
    file.write_text(json.dumps(record(detail=detail)) + "\n")
    assert main(["report", str(file), "--out", str(tmp_path / "out")]) == 0
    assert "1 records, 7 pictures" in capsys.readouterr().out
    pictures = list((tmp_path / "out").glob("relay-*.png"))
    assert len(pictures) == 7
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert (tmp_path / "out" / "index.html").read_text().count("<img") == 7


def test_what_is_no_record_is_refused(tmp_path, capsys):
    file = tmp_path / "r.json"
    file.write_text("{}")
    assert main(["report", str(file), "--out", str(tmp_path)]) == 2
    assert "no record" in capsys.readouterr().err


def test_the_records_of_the_repository_can_be_shown(tmp_path):
    # Two that are soon drawn; every record's tables are checked above.
    files = [str(RECORDS / f"{name}.json") for name in ("device", "reload")]
    assert main(["report", *files, "--out", str(tmp_path)]) == 0
