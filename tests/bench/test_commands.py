from __future__ import annotations

import json

import pytest

from bench.__main__ import main


def test_a_closed_loop_by_command(base, capsys, tmp_path):
    body = tmp_path / "body.json"
    body.write_text("{}")
    asked = ["load", "--url", base, "--body", str(body), "--connections", "4", "--seconds", "0.3"]
    assert main([*asked, "--processes", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] == found["statuses"]["200"] > 4
    assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99.9"]


def test_an_open_loop_by_command(base, capsys):
    asked = ["load", "--url", f"{base}/status/429", "--rate", "100", "--seconds", "0.3"]
    assert main(asked) == 1  # nothing good came back
    said = capsys.readouterr().out
    assert "status 429" in said
    assert "100/s, poisson" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--url", "localhost"], "expected a URL"),
        (["--url", "http://127.0.0.1:1"], "cannot connect"),
        (["--url", "http://h", "-H", "bad"], "expected a header"),
        (["--url", "http://h", "--processes", "65"], "--processes"),
        (["--url", "http://h", "--body", "/none"], "/none"),
    ],
)
def test_a_load_that_cannot_be_says_why(more, says, capsys):
    assert main(["load", *more]) == 2
    assert says in capsys.readouterr().err


def test_scenarios_and_rivals_are_listed(capsys):
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for name in ("small-tensor", "idle", "mosec", "triton", "sim batching"):
        assert name in said


@pytest.mark.parametrize(
    "asked", [["run", "none"], ["run", "idle", "--rivals", "none"], ["rivals", "install", "none"]]
)
def test_unknown_names_are_refused(asked, capsys):
    assert main(asked) == 2
    assert "'none'" in capsys.readouterr().err
