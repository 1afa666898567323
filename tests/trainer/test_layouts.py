"""A decoder over every kind of mesh: the same losses and weights, from one layout to the next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_tensors
from tests.trainer.ranks import Ranks, journal, weight_hashes
from tests.trainer.tiny import DECODER

pytestmark = pytest.mark.timeout(900)

# A half of the training under each; the second goes on from what the first committed.
LAYOUTS = {
    "tensor, then interleaved pipeline": (
        2,
        ("parallel.tp=2",),
        ("parallel.pp=2", "parallel.schedule=interleaved"),
    ),
    "sharded tensor, then pipeline of tensor": (
        4,
        ("parallel.tp=2", "parallel.dp_shard=2"),
        ("parallel.pp=2", "parallel.tp=2", "parallel.dp_shard=1"),
    ),
    "sharded pipeline, then copied tensor": (
        4,
        ("parallel.pp=2", "parallel.schedule=gpipe", "parallel.dp_shard=2"),
        ("parallel.tp=2", "parallel.dp_replicate=2", "parallel.dp_shard=1"),
    ),
    "copied pipeline, then sharded and copied": (
        4,
        ("parallel.pp=2", "parallel.layers=[3, 1]", "parallel.dp_replicate=2"),
        ("parallel.dp_replicate=2", "compute.recompute=full"),
    ),
    "cut sequences, then sharded too": (
        4,
        ("parallel.cp=4",),
        ("parallel.cp=2", "parallel.dp_shard=2", "compute.recompute=full"),
    ),
    "copied cut sequences, then of tensor": (
        4,
        ("parallel.cp=2", "parallel.dp_replicate=2", "parallel.dp_shard=1"),
        ("parallel.cp=2", "parallel.tp=2", "parallel.dp_shard=1"),
    ),
    "pipeline of cut sequences, then three": (
        4,
        ("parallel.cp=2", "parallel.pp=2"),
        ("parallel.cp=2", "parallel.pp=2", "parallel.schedule=interleaved"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


def train(folder: Path, name: str, *overrides: str, count: int = 1) -> Path:
    config = folder / f"{name.replace(' ', '-')}.toml"
    config.write_text(DECODER.format(run=folder / name))
    ranks = Ranks(folder / "logs", [str(config), *overrides], count)
    assert ranks.wait() == [0] * count, ranks.log()
    return folder / name


def readings(run: Path, what: str) -> list[float]:
    return [line[what] for line in journal(run, "step")]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return train(folder, "alone")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_trains_as_one_rank_does(folder, alone, name):
    count, first, second = LAYOUTS[name]
    train(folder, name, *first, "steps=2", count=count)
    run = train(folder, name, *second, count=count)
    assert readings(run, "loss") == pytest.approx(readings(alone, "loss"), rel=1e-5)
    # The clip sees the norm: each parameter counts once, wherever it is.
    assert readings(run, "grad_norm") == pytest.approx(readings(alone, "grad_norm"), rel=1e-4)
    assert max(readings(alone, "grad_norm")) > 1.0
    ours, theirs = Run(run).manifest(4), Run(alone).manifest(4)
    assert dict(ours.evaluation) == pytest.approx(dict(theirs.evaluation), rel=1e-5)
    assert ours.structure_id == theirs.structure_id and dict(ours.ties) == dict(theirs.ties)
    weights = read_tensors(Run(run).folder(4), ours)
    for tensor, wanted in zip(
        weights.values(), read_tensors(Run(alone).folder(4), theirs).values(), strict=True
    ):
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("pipe", ("parallel.pp=2", "parallel.tp=2")), ("cut", ("parallel.tp=2",))],
)
def test_the_same_layout_goes_on_bit_by_bit(folder, name, layout):
    whole = train(folder, f"{name}-whole", *layout, count=4)
    train(folder, f"{name}-halves", *layout, "steps=2", count=4)
    halves = train(folder, f"{name}-halves", *layout, count=4)
    assert weight_hashes(halves, 4) == weight_hashes(whole, 4)


def test_first_values_do_not_depend_on_the_layout(folder):
    still = ("steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
    one = train(folder, "still", *still)
    many = train(folder, "still-cut", *still, "parallel.pp=2", "parallel.tp=2", count=4)
    assert weight_hashes(one, 1) == weight_hashes(many, 1)


@pytest.mark.parametrize(
    ("name", "mesh"),
    [("sharded", ()), ("copied", ("parallel.dp_shard=1", "parallel.dp_replicate=2"))],
)
def test_updates_learn_alike_on_any_ranks(folder, alone, name, mesh):
    options = (f'model.init="{alone}@4"', "lora.rank=4", "optimizer.ema=0.5", "steps=3")
    one = train(folder, f"tuned-alone-{name}", *options)
    many = train(folder, f"tuned-{name}", *options, *mesh, count=2)
    assert readings(many, "loss") == pytest.approx(readings(one, "loss"), rel=1e-5)
    ours, theirs = Run(many).manifest(3), Run(one).manifest(3)
    assert ours.structure_id == theirs.structure_id == Run(alone).manifest(4).structure_id
    weights = read_tensors(Run(many).folder(3), ours)
    for name, wanted in read_tensors(Run(one).folder(3), theirs).items():
        torch.testing.assert_close(weights[name], wanted, rtol=1e-4, atol=1e-5)


def test_ranks_share_one_cache_of_tokens(folder, tmp_path):
    lines = (f'{{"text": "{n}: to be, or not to be; that is the question"}}' for n in range(40))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    data = f'{{files=["{tmp_path}/*.jsonl"], length=16, held_out=0.5, cache="{tmp_path}/cache"}}'
    options = ("data.class=trainer.data:Text", f"data.config={data}", "model.config.vocab_size=257")
    one = train(folder, "text-alone", *options, "steps=2")
    two = train(folder, "text-of-two", *options, "steps=2", count=2)
    assert readings(two, "loss") == pytest.approx(readings(one, "loss"), rel=1e-5)
    assert len([f for f in (tmp_path / "cache").iterdir() if f.is_dir()]) == 1
    assert "model/tokenizer.json" in Run(two).manifest(2).files


def test_a_model_must_know_the_tokens_of_its_data(folder, tmp_path):
    (tmp_path / "a.txt").write_text("to be, or not to be; " * 40)
    (tmp_path / "b.txt").write_text("that is the question. " * 40)
    data = f'{{files=["{tmp_path}/*.txt"], length=16, held_out=0.5, cache="{tmp_path}/cache"}}'
    config = folder / "narrow.toml"
    config.write_text(DECODER.format(run=folder / "narrow"))
    ranks = Ranks(
        folder / "logs", [str(config), "data.class=trainer.data:Text", f"data.config={data}"]
    )
    assert ranks.wait() == [2]
    assert "model.config: it knows 16 tokens, and the data has 257" in ranks.log()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("parallel.tp=4",), "parallel.tp = 4 does not divide the model's 2 kv_heads"),
        (("parallel.pp=4", "data.batch_size=4"), "2 micro-batches a rank, and a pipeline of 4"),
        (("parallel.pp=2", "parallel.layers=[1, 2]"), "parallel.layers: expected 2 numbers"),
        (("parallel.pp=2", "data.batch_size=6"), "micro-batches of one shape"),
        (
            ("parallel.tp=2", "model.class=tests.trainer.tiny:Plain", "model.config={}"),
            "tensor_plan",
        ),
        (
            ("parallel.cp=4", "model.class=tests.trainer.tiny:Plain", "model.config={}"),
            "context_plan",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(folder, overrides, said):
    config = folder / "refused.toml"
    config.write_text(DECODER.format(run=folder / "refused"))
    ranks = Ranks(folder / "logs", [str(config), *overrides], 4)
    assert all(status == 2 for status in ranks.wait())
    assert said in ranks.log()
