"""A billion parameters on a GPU: what it is held against, and that it says where it cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.__main__ import main
from bench.floors import train_loop
from bench.scenarios import Options
from bench.scenarios.train import ours
from bench.scenarios.train_gpu import mfu, parameters, task_of
from bench.trainers import Task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    options = Options(quick=True, seed=1, rivals=None, folder=tmp_path, console=Console())
    return task_of(options)


def test_the_share_is_of_useful_arithmetic(task):
    """As usual: six operations a parameter and token, and attention as if all saw all."""
    count = parameters(task)
    assert 0.9e9 < count < 1.2e9
    each = 6 * count + 12 * task.layers * task.width * task.length
    assert mfu(task, 1e5, 1e5 * each) == pytest.approx(1, rel=0.01)


def test_our_trainer_takes_such_a_task_on_the_device_that_it_names(tmp_path):
    small = Task(1, 64, 64, 2, 16, steps=25, warm=5, seed=1, precision="bf16", device="cpu")
    found = ours(small, tmp_path, None)
    assert found["seconds"] > 0 and len(found["losses"]) == 25


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_is_not_run_and_says_so(capsys, task):
    assert main(["run", "train-gpu", "--quick"]) == 1
    said = capsys.readouterr()
    assert "not run: no CUDA device that torch can use" in said.err and said.out == ""
    with pytest.raises(SystemExit, match="no CUDA device"):
        train_loop.main(task)
