from __future__ import annotations

import math

import pytest

from trainer.errors import GateRefused
from trainer.gate import Gate


def test_all_conditions_must_hold():
    gate = Gate.parse("accuracy >= 0.97 and loss<0.2")
    gate.check({"accuracy": 0.97, "loss": 0.1999})
    with pytest.raises(GateRefused, match=r"loss < 0.2 \(it is 0.2\)"):
        gate.check({"accuracy": 0.98, "loss": 0.2})
    with pytest.raises(GateRefused, match=r"accuracy >= 0.97 \(it is 0.96\) and loss < 0.2"):
        gate.check({"accuracy": 0.96, "loss": 0.3})


@pytest.mark.parametrize("test", ["<", "<=", ">", ">=", "!=", "=="])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_passes(test, value):
    with pytest.raises(GateRefused):
        Gate.parse(f"loss {test} 0.5").check({"loss": value})


def test_what_is_not_measured_never_passes():
    gate = Gate.parse("f1 > 0")
    assert gate.unknown(["loss"]) == ["f1"]
    with pytest.raises(GateRefused, match="not measured; measured: accuracy, loss"):
        gate.check({"loss": 1.0, "accuracy": 1.0})


def test_no_condition_lets_everything_pass():
    assert not Gate()
    Gate().check({})


@pytest.mark.parametrize(
    "text", ["", "accuracy", "accuracy >= ", "accuracy >= x", "loss < nan", "a > 1 or b > 2"]
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="is no condition"):
        Gate.parse(text)


def test_it_reads_what_it_writes():
    gate = Gate.parse("accuracy>=0.97 and  loss != 3")
    assert str(gate) == "accuracy >= 0.97 and loss != 3"
    assert Gate.parse(str(gate)) == gate
