from __future__ import annotations

import json
import signal
import subprocess
from subprocess import PIPE

import pytest

from bench.__main__ import main
from bench.serving import ROOT, python


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
        (["--url", "http://h", "-H", "bad"], "--header: expected"),
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


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rate", "0"], "--rate: expected a number above 0"),
        (["--rate", "nan"], "--rate: expected"),
        (["--seconds", "-1"], "--seconds: expected"),
        (["--timeout", "0"], "--timeout: expected"),
        (["--warmup", "-1"], "--warmup: expected"),
        (["--connections", "0"], "--connections: expected at least 1"),
        (["--arrivals", "bursts"], "--arrivals: they need --rate"),
        (["--speed", "2"], "--speed: it needs --trace"),
        (["--ramp", "1:9", "--rate", "5"], "leave --rate and --trace out"),
        (["--ramp", "9:1"], "--ramp: expected a rise"),
        (["--model", "m"], "--model: it needs --mode openai"),
        (["--max-tokens", "5"], "--max-tokens: it needs --mode openai"),
        (["--mode", "openai"], "--model: expected the model's name"),
        (["--mode", "openai", "--model", "m", "--body", "/x"], "--model: --body has"),
        (["--mode", "openai", "--model", "m", "--method", "PUT"], "--method: it is given"),
        (["--mode", "sse", "--preset", "mlp"], "--preset: no preset is for --mode sse"),
        (["--mode", "sse", "--timing"], "--timing: it needs --mode http"),
        (["--preset", "mlp", "--body", "/x"], "--preset: --body has"),
        (["--insecure"], "--insecure: it needs https"),
        (["-H", "content-length: 3"], "'content-length' is the generator's own"),
        (["-H", "x: a\nb"], "line break"),
        (["-H", "x: \u4e00"], "cannot be sent"),
        (["--trace", "/none"], "/none"),
    ],
)
def test_an_option_that_cannot_be_or_would_be_ignored_is_named(more, says, capsys):
    assert main(["load", "--url", "http://127.0.0.1:1", *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bench load: ") and says in said


@pytest.mark.parametrize(
    "url", ["http://h:0/", "http://h:99999/", "http://h/a b", "http://u:p@h/", "http://h/\u00e9"]
)
def test_a_url_that_cannot_be_is_refused(url, capsys):
    assert main(["load", "--url", url]) == 2
    assert "bench load: " in capsys.readouterr().err


def test_ctrl_c_ends_a_load_with_what_was_found_until_then(base):
    asked = ["-m", "bench", "load", "--url", base, "--connections", "2", "--seconds", "60"]
    command = python(*asked, "--processes", "2", "--json")
    load = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=PIPE,
        stderr=PIPE,
        # A shell's background jobs inherit that it is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert load.stderr is not None and load.stdout is not None
    assert "answers/s" in load.stderr.readline()  # no terminal: lines
    load.send_signal(signal.SIGINT)
    found = json.loads(load.stdout.read())
    assert load.wait(20) == 130
    assert found["interrupted"] and 0 < found["seconds"] < 60
    assert found["ok"] == found["sent"] > 4 and found["errors"] == {}
    load.stderr.close()
    load.stdout.close()
