"""Records as a page and pictures: nothing is lost, nothing is made up, all text is escaped."""

from __future__ import annotations

import json
import re

import pytest

from bench.__main__ import main
from bench.report.page import command, page


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


def test_a_page_has_every_figure_its_ratio_and_what_is_missing():
    text = page([(record(), {"bars": b"\x89PNG"})])
    for part in ("200 req/s", "2.00 ×", "0.50 ×", "not met", "commit abc", "bench run relay"):
        assert part in text
    assert "unavailable: not &lt;installed&gt;" in text and "rate &lt;64&gt;" in text
    assert "data:image/png;base64," in text
    assert not re.search(r'(src|href)="http', text)  # nothing is loaded


def test_less_may_be_better_and_older_records_have_no_ratio():
    less, old = record(), record()
    less["detail"]["higher_is_better"] = False
    assert '<td class="n">0.50 ×</td></tr><tr><td>nginx' in page([(less, {})])
    del old["detail"]["higher_is_better"]
    assert "2.00 ×" not in page([(old, {})])


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
        "roofline": {
            "bandwidth_gb_s": 34.0,
            "peak_gflop_s": 420.0,
            "points": [{"name": "batch 8", "flop_per_byte": 8.0, "gflop_s": 200.0}],
        },
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
    assert main(["report", "--out", str(tmp_path)]) == 0
