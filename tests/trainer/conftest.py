"""What the trainer's tests share: training inside the test's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import CONFIG
from trainer.config import Loaded, load
from trainer.process import train

Train = Callable[..., int]


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    """A run that is to be repeatable changes what torch allows, for its whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def configure(tmp_path: Path, run: Path) -> Callable[..., Loaded]:
    """The tests' configuration with overrides."""
    path = tmp_path / "train.toml"

    def build(*overrides: str) -> Loaded:
        path.write_text(CONFIG.format(run=run))
        return load(path, {}, overrides)

    return build


@pytest.fixture
def train_here(configure: Callable[..., Loaded]) -> Train:
    """Trains as one rank; returns the exit status."""
    return lambda *overrides: train(configure(*overrides), {})
