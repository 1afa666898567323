"""Methods of synchronisation on real ranks, each against what it must equal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_tensors
from tests.trainer.ranks import Ranks, journal, weight_hashes
from tests.trainer.sync.witness import watch_replicas
from tests.trainer.tiny import CONFIG, Plain

pytestmark = pytest.mark.timeout(900)

COPIES = ("parallel.dp_shard=1", "parallel.dp_replicate=-1")
PLAIN = ("model.class=tests.trainer.tiny:Plain", "steps=12", "checkpoint.probe=0", "log_every=1")
# Without momentum: an average of replicas that each took a step is then a step of the average.
SGD = ("optimizer.name=sgd", "optimizer.momentum=0.0", "optimizer.lr=0.1", "optimizer.clip=1e6")
DELTAS = ("sync.method=accumulate", "sync.carry=deltas")
STREAM = (*DELTAS, "sync.every=6", "sync.fragments=3", "sync.overlap=1", "sync.outer_lr=0.7")
STREAM += ("sync.outer_momentum=0.9", "sync.dtype=bfloat16", "checkpoint.every=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


def train(folder: Path, name: str, *overrides: str, count: int = 2, watch: bool = False) -> Path:
    config = folder / f"{name}.toml"
    config.write_text(CONFIG.format(run=folder / name))
    hurt = dict.fromkeys(range(count), watch_replicas) if watch else None
    argv = [str(config), *PLAIN, *COPIES, *overrides]
    ranks = Ranks(folder / "logs", argv, count, hurt=hurt)
    assert ranks.wait() == [0] * count, ranks.log()
    return folder / name


def weights(run: Path, step: int = 12) -> dict[str, torch.Tensor]:
    return read_tensors(Run(run).folder(step), Run(run).manifest(step))


def assert_alike(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def bytes_handed_over(run: Path) -> int:
    (line,) = journal(run, "exchanged")
    return int(line["bytes"])


SIZE = 4 * sum(parameter.numel() for parameter in Plain().parameters())


@pytest.fixture(scope="module")
def gradients(folder: Path) -> Path:
    run = train(folder, "gradients", *SGD)
    assert bytes_handed_over(run) == 12 * SIZE
    return run


def test_averaging_at_every_step_is_averaging_gradients(folder, gradients):
    run = train(folder, "averaging", *SGD, "sync.method=accumulate", watch=True)
    assert_alike(run, gradients)
    assert bytes_handed_over(run) == 12 * SIZE


@pytest.mark.parametrize("optimizer", [SGD, ("optimizer.clip=0.5",)])
def test_roots_that_broadcast_are_replicas_that_reduce(folder, optimizer):
    name = f"roots-{len(optimizer)}"
    run = train(folder, name, "sync.method=broadcast", *optimizer, count=3, watch=True)
    assert_alike(run, train(folder, f"{name}-beside", *optimizer, count=3))
    assert bytes_handed_over(run) == 2 * 12 * SIZE


def test_an_outer_step_of_one_without_momentum_is_an_average(folder):
    local = train(folder, "local", "sync.method=accumulate", "sync.every=4", watch=True)
    outer = train(folder, "outer", *DELTAS, "sync.every=4", watch=True)
    assert_alike(outer, local)
    assert bytes_handed_over(outer) == bytes_handed_over(local) == 3 * SIZE


def test_shards_within_replicas_are_whole_replicas(folder):
    whole = train(folder, "whole", *DELTAS, "sync.every=3", "sync.outer_momentum=0.5")
    sharded = train(
        folder,
        "sharded",
        *(*DELTAS, "sync.every=3", "sync.outer_momentum=0.5"),
        *("parallel.dp_replicate=2", "parallel.dp_shard=2", "evaluate.every=2"),
        count=4,
    )
    assert_alike(sharded, whole)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("stream", STREAM),
        ("average", ("sync.method=accumulate", "sync.every=6", "checkpoint.every=4")),
        ("roots", ("sync.method=broadcast", "checkpoint.every=4")),
    ],
)
def test_a_run_that_goes_on_within_a_round_is_the_run_that_never_stopped(folder, name, options):
    whole = train(folder, f"{name}-whole", *options, watch=True)
    parted = folder / f"{name}-parted"
    shutil.copytree(whole, parted)
    for step in (8, 12):
        shutil.rmtree(Run(parted).folder(step))
    train(folder, parted.name, *options, watch=True)
    assert [line["step"] for line in journal(parted, "start")][-1] == 4
    assert weight_hashes(parted, 12) == weight_hashes(whole, 12)
    state = [f for f in Run(whole).manifest(12).files if f.startswith("state/__")]
    assert state and all(
        Run(whole).manifest(12).files[f] == Run(parted).manifest(12).files[f] for f in state
    )
    if name == "stream":
        assert bytes_handed_over(whole) == 12 // 6 * SIZE // 2


def test_other_replicas_and_other_methods_go_on_from_what_was_agreed(folder):
    run = train(folder, "changing", *STREAM, "steps=6", "schedule.name=constant")
    (first,) = Run(run).steps()[-1:]
    agreed = weight_hashes(run, first)
    train(folder, "changing", *STREAM, "schedule.name=constant", count=3, watch=True)
    train(folder, "changing", "steps=18", "schedule.name=constant", count=2)
    notes = [line["note"] for line in journal(run, "resume_note")]
    assert len(notes) == 2 and all("what they had agreed on" in note for note in notes)
    assert Run(run).manifest(18).position == 18 * 24
    assert weight_hashes(run, 18) != agreed
    assert journal(run, "step")[-1]["loss"] < journal(run, "step")[0]["loss"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("sync.method=accumulate", "parallel.dp_replicate=1", "parallel.dp_shard=-1"), "has one"),
        (("sync.method=broadcast", "parallel.dp_replicate=1", "parallel.dp_shard=-1"), "has one"),
        (("sync.method=accumulate", "sync.every=5"), "steps = 12 is no multiple"),
        (("sync.every=5",), 'only with sync.method = "accumulate" or "server"'),
        (("sync.method=accumulate", "sync.outer_lr=0.5"), 'only with sync.carry = "deltas"'),
        (("sync.method=accumulate", "sync.carry=gradients"), "carries parameters or deltas"),
        ((*DELTAS, "sync.every=2", "sync.fragments=3"), "at most sync.every = 2"),
        ((*DELTAS, "sync.every=2", "sync.overlap=2"), "less than sync.every = 2"),
        ((*DELTAS, "sync.every=2", "sync.blend=0.1"), "only with sync.overlap above 0"),
    ],
)
def test_what_cannot_work_is_refused(folder, options, said):
    from trainer.build import prepare
    from trainer.config import load
    from trainer.errors import ConfigError

    config = folder / "refused.toml"
    config.write_text(CONFIG.format(run=folder / "refused"))
    with pytest.raises(ConfigError) as caught:
        prepare(load(config, {}, [*PLAIN, *COPIES, *options]), 4)
    assert said in str(caught.value)
