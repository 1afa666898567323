"""What goes together by configuration alone: a decoder's run, each time beside one rank's."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_tensors
from tests.trainer.ranks import Ranks, journal, weight_hashes
from tests.trainer.tiny import DECODER
from trainer.data import Text

pytestmark = pytest.mark.timeout(900)

# Without momentum or clip, averaged parameters are those of averaged gradients.
SGD = ("optimizer.name=sgd", "optimizer.momentum=0.0", "optimizer.lr=0.1", "optimizer.clip=1e6")
AVERAGED = ("sync.method=accumulate", "parallel.dp_replicate=2", "parallel.dp_shard=1")
ROOTED = ("sync.method=broadcast", *AVERAGED[1:])
EMA = ("optimizer.ema=0.5", "evaluate.every=1")
UPDATES = ("lora.rank=4", 'lora.targets=["*_proj"]')
DROPPED = (*UPDATES, "lora.dropout=0.3")
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
        ("updates-pipe", UPDATES, ("parallel.pp=2", "parallel.tp=2"), 4),
        ("average-sharded", EMA, (), 2),
        ("averaged-tensor", SGD, (*AVERAGED, "parallel.tp=2"), 4),
        ("averaged-pipe", SGD, (*AVERAGED, "parallel.pp=2"), 4),
        ("average-of-averaged", (*SGD, *EMA), AVERAGED, 2),
        ("average-of-rooted", EMA, ROOTED, 2),
        ("rooted-tensor", (), (*ROOTED, "parallel.tp=2"), 4),
        ("rooted-pipe", EMA, (*ROOTED, "parallel.pp=2"), 4),
        ("rooted-sequences", (), (*ROOTED, "parallel.cp=2"), 4),
        ("rooted-shards", UPDATES, (*ROOTED[:2], "parallel.dp_shard=2"), 4),
        ("dropped-tensor", DROPPED, ("parallel.tp=2",), 2),
        ("odd-tensor", ODD, ("parallel.tp=2",), 2),
        ("odd-sequences", ODD, ("parallel.cp=2",), 2),
    ],
)
def test_what_goes_together_trains_as_one_rank_does(folder, alone, name, options, mesh, count):
    assert_alike(train(folder, name, *options, *mesh, count=count), alone(*options))


ROUNDS = (*AVERAGED, "parallel.pp=2", "sync.every=4", "sync.carry=deltas")
ROUNDS += ("sync.outer_momentum=0.9", "sync.fragments=2", "sync.overlap=1")


@pytest.mark.parametrize(
    ("name", "mesh"), [("rounds", ROUNDS), ("rooted-again", (*ROOTED, "parallel.tp=2"))]
)
def test_replicas_that_are_cut_go_on_within_a_round(folder, name, mesh):
    options = (*mesh, "steps=8", "checkpoint.every=3")
    whole = train(folder, name, *options, count=4)
    train(folder, f"{name}-halves", *options, "steps=4", count=4)
    halves = train(folder, f"{name}-halves", *options, count=4)
    assert weight_hashes(halves, 8) == weight_hashes(whole, 8)


def test_replicas_of_pipelines_hold_the_same_bits(folder):
    """Three of them, as an order of adding would show; tied weights are on both ends."""
    options = (*ROOTED[:1], "parallel.dp_replicate=3", "parallel.dp_shard=1", "parallel.pp=2")
    config = folder / "same.toml"
    config.write_text(DECODER.format(run=folder / "same"))
    told = folder / "told"
    told.mkdir()
    hurt = dict.fromkeys(range(6), partial(tell_bits, told))
    ranks = Ranks(folder / "logs", [str(config), *options, "data.batch_size=12"], 6, hurt=hurt)
    assert ranks.wait() == [0] * 6, ranks.log()
    bits: dict[str, set[str]] = {}
    for file in told.iterdir():
        for name, digest in json.loads(file.read_text()).items():
            bits.setdefault(name, set()).add(digest)
    assert len(list(told.iterdir())) == 6 and "embed_tokens.weight" in " ".join(bits)
    assert all(len(seen) == 1 for seen in bits.values()), bits


def tell_bits(folder: Path) -> None:
    """Each rank writes down what it holds after the last step."""
    from trainer.server.layout import digest
    from trainer.sync.broadcast import Broadcast

    begun, done = Broadcast.__init__, Broadcast.after_step

    def begin(self, parallel, replica, *rest):  # type: ignore[no-untyped-def]
        begun(self, parallel, replica, *rest)
        self.model = parallel.model

    def tell(self, step):  # type: ignore[no-untyped-def]
        done(self, step)
        if step == 4:
            held = {n: digest(p.detach()) for n, p in self.model.named_parameters()}
            (folder / f"{os.getpid()}.json").write_text(json.dumps(held))

    Broadcast.__init__, Broadcast.after_step = begin, tell  # type: ignore[method-assign]


def test_cut_sequences_learn_in_half_precision_too(folder, alone):
    options = ("compute.precision=bf16", "parallel.cp=2")
    ours = [line["loss"] for line in journal(train(folder, "half", *options, count=2), "step")]
    theirs = [line["loss"] for line in journal(alone(), "step")]
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_an_average_may_begin_later(folder, alone):
    train(folder, "later", *EMA[1:], "steps=2")
    run = train(folder, "later", *EMA)
    assert journal(run, "evaluation")[2]["loss"] < 1.1 * journal(alone(), "evaluation")[0]["loss"]


@pytest.fixture(scope="module")
def talks(folder: Path) -> tuple[str, ...]:
    """Conversations of different lengths, and a tokenizer whose tokens are bytes."""
    texts = folder / "texts"
    texts.mkdir()
    (texts / "some.txt").write_text("to be, or not to be")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    files = Text([str(texts / "*.txt")], 8, cache=str(folder / "cache")).files()
    for name, content in files.items():
        (tokenizer / name).write_bytes(content)
    (tokenizer / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    lines = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "ab" * (i % 9 + 1)}]
        for i in range(40)
    ]
    (texts / "talks.jsonl").write_text("\n".join(json.dumps({"messages": m}) for m in lines))
    config = f'files=["{texts}/*.jsonl"], tokenizer="{tokenizer}", length=64'
    chosen = ("data.class=trainer.data:Chat", f"data.config={{{config}}}")
    return (*chosen, "model.config.vocab_size=257")


def test_conversations_of_any_length_fit_every_mesh(folder, alone, talks):
    mesh = ("parallel.pp=2", "parallel.cp=2")
    assert_alike(train(folder, "talks", *talks, *mesh, count=4), alone(*talks))
