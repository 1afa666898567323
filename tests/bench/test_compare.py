from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.compare import CannotCompare, compare, differences, paired

FIGURES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=12)


def record(ours, floor=(), scenario="s", **hardware):
    values = {"penstock": list(ours), "floor": list(floor)}
    series = {"unit": "req/s", "higher_is_better": True, "values": values}
    return {
        "scenario": scenario,
        "detail": {"repetitions": {"rate": series}},
        "commit": "abc",
        "hardware": {"cores": 2, **hardware},
        "versions": {"torch": "1", "penstock": "0"},
    }


@given(FIGURES, st.floats(0.2, 5))
def test_a_constant_factor_is_found_exactly(figures, factor):
    ratio = paired(figures, [x * factor for x in figures], higher_is_better=True)
    assert ratio.value == pytest.approx(factor)
    assert ratio.low == pytest.approx(factor)
    assert ratio.high == pytest.approx(factor)


@given(FIGURES, FIGURES)
def test_the_other_way_round_is_the_inverse(a, b):
    there = paired(a, b, higher_is_better=True)
    back = paired(b, a, higher_is_better=True)
    time = paired(a, b, higher_is_better=False)
    assert there.value * back.value == pytest.approx(1)
    assert there.value * time.value == pytest.approx(1)
    assert there.low <= there.value * 1.000001 and there.value <= there.high * 1.000001


def test_noise_shows_no_difference_and_a_shift_does():
    a = [100, 110, 95, 105, 102, 98, 107]
    assert paired(a, a[::-1], higher_is_better=True).verdict == "no difference shown"
    assert paired(a, [x * 1.3 for x in a[::-1]], higher_is_better=True).verdict == "better"
    assert paired(a, [x * 1.3 for x in a[::-1]], higher_is_better=False).verdict == "worse"


def test_few_pairs_give_no_verdict():
    assert "4 of 5" in paired([1, 1, 1, 1], [2, 2, 2, 2], higher_is_better=True).verdict


@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], [0.0])])
def test_nothing_to_pair_is_said(a, b):
    with pytest.raises(CannotCompare, match="above zero"):
        paired(a, b, higher_is_better=True)


def test_the_floor_takes_a_slow_machine_out_of_the_ratio():
    before = record([100, 100, 100, 100, 100], [200, 200, 200, 200, 200])
    slower_machine = record([50, 50, 50, 50, 50], [100, 100, 100, 100, 100])
    rows = {row.who: row.ratio.value for row in compare(before, slower_machine)}
    assert rows == {
        "penstock": pytest.approx(0.5), "floor": pytest.approx(0.5),
        "penstock / floor": pytest.approx(1),
    }  # fmt: skip


def test_records_that_do_not_fit_are_refused():
    with pytest.raises(CannotCompare, match="different scenarios"):
        compare(record([1]), record([1], scenario="t"))
    with pytest.raises(CannotCompare, match="no repetitions"):
        compare(record([1]), {**record([1]), "detail": {}})


def test_what_else_differs_is_told():
    a, b = record([1]), record([1], cores=4)
    b["versions"]["torch"] = "2"
    assert differences(a, b) == ["cores: 2 and 4", "torch: 1 and 2"]


def test_the_command_reads_last_lines(tmp_path, capsys):
    for name, figures in (("a", [10, 10, 10, 10, 10]), ("b", [20, 20, 20, 20, 20])):
        (tmp_path / name).write_text("a table\n" + json.dumps(record(figures)) + "\n")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "2.000" in capsys.readouterr().out
    (tmp_path / "a").write_text("no record\n")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert main(["compare", str(tmp_path / "none"), str(tmp_path / "b")]) == 2
    assert "bench compare:" in capsys.readouterr().err
