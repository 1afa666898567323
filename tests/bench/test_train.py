"""The programs of `bench run train` do the same task, and say it in the same form."""

from __future__ import annotations

import json

import pytest
import torch

from bench.floors import train_loop
from bench.scenarios.train import check
from bench.series import MeasureFailed
from bench.trainers import Task
from bench.trainers.data import HELD_OUT, Sequences, sequences

TASK = Task(
    layers=1, width=64, vocabulary=32, sequences=4, length=8, steps=30, warm=10, seed=0, lr=1e-2
)


def test_a_task_travels_as_text():
    assert Task.load(TASK.dump()) == TASK
    assert TASK.tokens == 20 * 4 * 8


def test_the_plain_loop_learns_and_reports(capsys):
    train_loop.main(TASK)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(said["losses"]) == 30 and said["seconds"] > 0
    assert said["losses"][-1] < said["losses"][0] - 0.3


def test_every_program_has_the_same_data():
    data = Sequences(count=120, length=8, vocabulary=32, seed=0)
    tokens = sequences(120 + HELD_OUT, 8, 32, 0)
    assert torch.equal(data.train()["tokens"], tokens[HELD_OUT:])
    assert torch.equal(data.held_out()["tokens"], tokens[:HELD_OUT])


def test_a_program_that_did_less_is_found():
    check({"floor": 2.0, "penstock": 2.1, "hf-trainer": 1.9})
    with pytest.raises(MeasureFailed, match=r"penstock ends with a loss of 3\.000"):
        check({"floor": 2.0, "penstock": 3.0})
