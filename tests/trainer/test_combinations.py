"""What goes together by configuration alone: a decoder's run, each time beside one rank's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_tensors
from tests.trainer.ranks import Ranks, journal, weight_hashes
from tests.trainer.tiny import DECODER

pytestmark = pytest.mark.timeout(300)

# Without momentum or clip, averaged parameters are those of averaged gradients.
SGD = ("optimizer.name=sgd", "optimizer.momentum=0.0", "optimizer.lr=0.1", "optimizer.clip=1e6")
AVERAGED = ("sync.method=accumulate", "parallel.dp_replicate=2", "parallel.dp_shard=1")
EMA = ("optimizer.ema=0.5", "evaluate.every=1")
UPDATES = ("lora.rank=4", 'lora.targets=["*_proj"]')
# Sequences of thirteen tokens are dealt to two ranks only when something is added to them.
ODD = ("data.config={length=13}",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("combinations")


def train(folder: Path, name: str, *overrides: str, count: int = 1) -> Path:
    config = folder / f"{name}.toml"
    config.write_text(DECODER.format(run=folder / name))
    ranks = Ranks(folder / "logs", [str(config), *overrides], count)
    assert ranks.wait() == [0] * count, ranks.log()
    return folder / name


@pytest.fixture(scope="module")
def alone(folder: Path):
    """One rank's run with these options, which is made once."""
    found: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in found:
            found[options] = train(folder, f"alone-{len(found)}", *options)
        return found[options]

    return run


def assert_alike(one: Path, other: Path) -> None:
    """The losses, what was held out, and what is published."""
    for event in ("step", "evaluation"):
        ours, theirs = ([line["loss"] for line in journal(run, event)] for run in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-5)
    step = Run(one).steps()[-1]
    a, b = (read_tensors(Run(run).folder(step), Run(run).manifest(step)) for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "mesh", "count"),
    [
        ("updates-tensor", UPDATES, ("parallel.tp=2",), 2),
        ("updates-pipe", UPDATES, ("parallel.pp=2", "parallel.tp=2"), 4),
        ("updates-sharded-tensor", UPDATES, ("parallel.tp=2", "parallel.cp=2"), 4),
        ("average-sharded", EMA, (), 2),
        ("average-cut", EMA, ("parallel.pp=2", "parallel.tp=2"), 4),
        ("averaged-tensor", SGD, (*AVERAGED, "parallel.tp=2"), 4),
        ("averaged-pipe", SGD, (*AVERAGED, "parallel.pp=2"), 4),
        ("averaged-sequences", SGD, (*AVERAGED, "parallel.cp=2"), 4),
        ("average-of-averaged", (*SGD, *EMA), AVERAGED, 2),
        ("average-of-rooted", EMA, ("sync.method=broadcast", *AVERAGED[1:]), 2),
        ("odd-tensor", ODD, ("parallel.tp=2",), 2),
        ("odd-sequences", ODD, ("parallel.cp=2",), 2),
    ],
)
def test_what_goes_together_trains_as_one_rank_does(folder, alone, name, options, mesh, count):
    assert_alike(train(folder, name, *options, *mesh, count=count), alone(*options))


@pytest.mark.parametrize(("name", "mesh"), [("t", "parallel.tp=2"), ("p", "parallel.pp=2")])
def test_replicas_that_are_cut_go_on_within_a_round(folder, name, mesh):
    options = (*AVERAGED, mesh, "sync.every=4", "sync.carry=deltas", "sync.outer_momentum=0.9")
    options += ("sync.fragments=2", "sync.overlap=1", "steps=8", "checkpoint.every=3")
    whole = train(folder, f"rounds-{name}", *options, count=4)
    train(folder, f"rounds-{name}-halves", *options, "steps=4", count=4)
    halves = train(folder, f"rounds-{name}-halves", *options, count=4)
    assert weight_hashes(halves, 8) == weight_hashes(whole, 8)


def test_an_average_may_begin_later(folder, alone):
    train(folder, "later", *EMA[1:], "steps=2")
    run = train(folder, "later", *EMA)
    assert journal(run, "evaluation")[2]["loss"] < 1.1 * journal(alone(), "evaluation")[0]["loss"]
