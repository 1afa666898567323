"""The tables of scenarios that show more than medians: each cell is of the record."""

from __future__ import annotations

import pytest

from bench.report.documents import markdown
from bench.report.subjects import tables


def record(scenario, detail, **changes):
    found = {
        "scenario": scenario,
        "metric": "m",
        "unit": "ms",
        "ours": 1.0,
        "floor": None,
        "rivals": {},
        "detail": detail,
        "commit": "abc",
        "hardware": {"cores": 2},
        "versions": {},
        "seed": 1,
    }
    return {**found, **changes}


def kill(**changes):
    quiet = {"requests": 1000, "failed": 0, "hurt_until": 0.0, "back": 0.5}
    return {**quiet, "p99_before": 0.02, "p99_back": 0.03, **changes}


def test_of_kills_each_is_shown_and_a_replica_that_never_returned():
    lost = kill(failed=3, hurt_until=0.25, back=None, p99_back=None)
    kills = {"penstock, native": [kill(), kill(back=0.7)], "nginx": [kill(), lost]}
    away = {"envoy": "unavailable: not installed"}
    (found,) = tables(record("failover", {"kills": kills}, rivals=away))
    assert found.rows == [
        ("Penstock, native", ["0 of 2,000", "0, 0", "0.6", "1.5"]),
        ("nginx", ["3 of 2,000", "0, 250", "never in 1 of 2", "1.5"]),
    ]
    assert found.absent == away


def test_what_could_not_be_held_has_its_reason():
    one = {"kb": 6.6, "cpu": 0.09, "answer_ms": 0.8, "events": 5}
    detail = {
        "held": {"streams": one},
        "failures": {"WebSockets": "9 of 10 began in time"},
        "count": {"streams": 9900, "WebSockets": 10_000},
    }
    (found,) = tables(record("many", detail))
    assert found.rows == [
        ("9,900 streams", ["6.6", "9", "0.8"]),
        ("WebSockets", ["9 of 10 began in time", "", ""]),
    ]


def test_language_models_have_a_table_for_each_kind_of_prompts():
    each = {"tokens_s": 131.0, "of_roof": 0.53, "ttft_p50_ms": 44.0, "ttft_p99_ms": 92.0}
    each |= {"gap_p50_ms": 6.6, "gap_p99_ms": 15.0, "bandwidth": 0.56, "flops": 0.04, "cached": 0.0}
    detail = {
        "plans": [
            {"name": "own", "shared": 0, "own": 128, "tokens": 64},
            {"name": "shared", "shared": 256, "own": 32, "tokens": 64},
        ],
        "cells": {
            "own, 8 at once": {"roof_tokens_s": {"penstock": 250.0}, "penstock": each, "rival": {}},
            "shared, 1 at once": {"roof_tokens_s": {}, "penstock": {**each, "cached": 0.5}},
        },
    }
    away = {"rival": "crashed"}
    own, shared = tables(record("llm", detail, rivals=away))
    assert own.rows == [("Penstock", ["8", "131", "53", "44, 92", "6.6, 15", "56", "4", "0"])]
    assert own.title == "Prompts of 128 tokens, answers of 64:"
    assert shared.rows[0][1][0] == "1" and shared.rows[0][1][-1] == "50"
    assert shared.title == "Prompts of 256 in common, 32 tokens of its own, answers of 64:"
    assert not own.absent and shared.absent == away


def test_memory_is_shown_after_shares_of_the_reloads():
    mb = [float(count) for count in range(0, 1001, 10)]
    (found,) = tables(record("reload-memory", {"tensors": {"reloads": 1000, "mb": mb}}))
    assert found.rows == [
        ("0", ["0.0"]),
        ("100", ["100.0"]),
        ("500", ["500.0"]),
        ("1,000", ["1000.0"]),
    ]


def test_a_batching_cell_has_ours_beside_the_best_of_the_others():
    matches = [
        {"cell": "a", "load": 0.3, "goodput": {"penstock": 1.0, "window": 0.9, "triton": 0.95}},
        {"cell": "a", "load": 1.2, "goodput": {"penstock": 0.8, "window": 0.81, "triton": 0.7}},
    ]
    _, found = tables(record("sim-batching", {"matches": matches}))
    assert found.columns == ["load 0.3", "load 1.2"]
    assert found.rows == [("a", ["100.0 · 95.0", "80.0 · 81.0"])]


def test_a_routing_scenario_has_the_best_rival_at_its_highest_load():
    p99 = {"predictive": [1.0, 30.0], "wlc": [1.0, 31.0], "lvs-wlc": [1.0, 36.0]}
    p99 |= {"p2c": [0.5, 40.0], "omniscient": [1.0, 20.0]}
    scenarios = {"tails": {"ours": "predictive", "loads": [0.5, 0.85], "p99_ms": p99}}
    both = {"lvs-wlc": 2.0, "p2c": 3.0}
    _, found = tables(record("sim-routing", {"scenarios": scenarios}, rivals=both))
    assert found.rows == [("tails", ["0.85", "predictive 30.0", "lvs-wlc 36.0", "20.0"])]


@pytest.mark.parametrize("unit", ["", "ms"])
def test_other_scenarios_have_the_table_of_their_metric(unit):
    text = markdown(record("elsewhere", {}, unit=unit), {}, [])
    assert "| server | m, ms |" in text if unit else "| server | m |" in text
    assert "| **Penstock** | 1 |" in text
