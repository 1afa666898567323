"""The same device for every server: its curve, and what counts as answered in time."""

from __future__ import annotations

import time

import pytest
import torch

from bench.load.spec import LoadReport
from bench.models.device import VARIABLE, BadCurve, Curve
from bench.models.mlp import Mlp
from bench.scenarios.device import in_time


def test_a_curve_is_read_and_says_what_full_batches_carry():
    curve = Curve.parse("8:0.1")
    assert str(curve) == "8:0.1"
    assert curve.seconds(20) == pytest.approx(0.010)
    assert curve.capacity(20) == pytest.approx(2000)


@pytest.mark.parametrize("text", ["8", "a:1", "-1:0", "nan:1", "1:inf", ":"])
def test_a_curve_that_is_none_is_refused(text):
    with pytest.raises(BadCurve, match="BASE:ROW"):
        Curve.parse(text)


def test_a_batch_takes_the_devices_time_and_computes_the_same(monkeypatch):
    rows_NI = torch.ones(3, 10)
    expected = Mlp().eval()(rows_NI)
    monkeypatch.setenv(VARIABLE, "10:5")
    model = Mlp().eval()
    began = time.perf_counter()
    assert torch.equal(model(rows_NI), expected)
    assert time.perf_counter() - began >= 0.025


def test_only_good_answers_within_the_limit_count_of_all_that_were_sent():
    report = LoadReport(sent=10, ok=6, statuses={"200": 6, "503": 2}, errors={"closed": 1})
    report.errors["timeout"] = 1
    for seconds in (0.001, 0.002, 0.003, 0.004, 0.09, 0.09):
        report.latency.record(int(seconds * 1e9))
    report.latency.record(1_000_000)  # what was closed, at once
    report.latency.record(2_000_000_000)
    assert in_time(report, 0.05) == pytest.approx(0.4)
    assert in_time(LoadReport(), 0.05) == 0
