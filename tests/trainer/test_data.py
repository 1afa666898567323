"""Samples: each exactly once an epoch, in the same order, whatever the number of ranks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DataConfig
from trainer.data import HeldOutBatches, Split, Tensors, TrainBatches, open_data
from trainer.errors import BadPlugin
from trainer.order import Permutation, SampleOrder, share

CPU = torch.device("cpu")
SEEDS = st.integers(0, 2**63 - 1)


@given(st.integers(1, 3000), SEEDS)
def test_a_permutation_is_a_bijection(size, key):
    images = Permutation(size, key)(np.arange(size, dtype=np.int64))
    assert sorted(images.tolist()) == list(range(size))


def test_a_permutation_shuffles():
    """Close to no fixed points, no runs, and another order for each key: mean of |i - p(i)| of a
    random permutation is n/3."""
    size = 1000
    counters = np.arange(size, dtype=np.int64)
    orders = [Permutation(size, key)(counters) for key in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 20
    for order in orders:
        assert abs(np.abs(order - counters).mean() / size - 1 / 3) < 0.05
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.15
        assert (np.diff(order) == 1).sum() < 10


@given(st.integers(1, 500), SEEDS, st.integers(0, 10), st.integers(20, 700))
def test_every_epoch_has_each_sample_once(size, seed, epoch, chunk):
    order = SampleOrder(size, seed)
    seen = [
        order.slice(at, min(chunk, size * (epoch + 1) - at))
        for at in range(size * epoch, size * (epoch + 1), chunk)
    ]
    assert sorted(np.concatenate(seen).tolist()) == list(range(size))


@given(st.integers(20, 300), SEEDS, st.lists(st.integers(0, 20_000), max_size=6))
def test_an_order_has_no_memory(size, seed, starts):
    """The samples at a position are the same wherever one comes from."""
    order = SampleOrder(size, seed)
    for start in starts:
        fresh = SampleOrder(size, seed).slice(start, 50)
        assert order.slice(start, 50).tolist() == fresh.tolist()


def test_the_order_is_what_it_always_was():
    """A run that resumes with a newer version must go on with the same samples."""
    assert SampleOrder(10, 0).slice(0, 10).tolist() == [0, 4, 3, 5, 7, 6, 1, 2, 9, 8]
    assert SampleOrder(1437, 0).slice(0, 5).tolist() == [676, 1096, 147, 1360, 1253]


@given(
    size=st.integers(20, 200),
    batch=st.integers(1, 64),
    worlds=st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(1, 20)), min_size=1),
    position=st.integers(0, 5000),
)
def test_any_ranks_together_take_the_same_batch(size, batch, worlds, position):
    source = Tensors({"index": torch.arange(size)})
    expected = SampleOrder(size, 7).slice(position, batch).tolist()
    for ranks, micro in worlds:
        config = DataConfig(class_="d:D", batch_size=batch, micro_batch=micro)
        taken, weight, passes = [], 0.0, set()
        for rank in range(ranks):
            pieces = list(TrainBatches(source, config, 7, rank, ranks).at(position, CPU))
            passes.add(len(pieces))
            for piece in pieces:
                rows = piece.batch["index"].tolist()
                assert micro is None or len(rows) <= micro
                weight += piece.weight
                taken += rows if piece.weight else []
        assert taken == expected
        assert weight == pytest.approx(1.0)
        assert len(passes) == 1  # or their collectives would not match


@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 50))
def test_each_held_out_sample_counts_once(size, ranks, batch):
    source = Tensors({"index": torch.arange(size)})
    seen: list[int] = []
    for rank in range(ranks):
        for piece in HeldOutBatches(source, batch, rank, ranks).all(CPU):
            rows = piece.batch["index"].tolist()
            assert len(rows) <= batch
            seen += rows if piece.weight else []
    assert seen == list(range(size))


@given(st.integers(0, 1000), st.integers(1, 30))
def test_shares_are_even_and_complete(total, parts):
    cuts = [share(total, parts, index) for index in range(parts)]
    assert cuts[0][0] == 0 and cuts[-1][1] == total
    assert all(a[1] == b[0] for a, b in pairwise(cuts))
    sizes = [end - start for start, end in cuts]
    assert max(sizes) - min(sizes) <= 1


def test_accumulation_follows_the_ranks():
    assert [Split.of(128, ranks, 16).passes for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]


class Wrong:
    def __init__(self, **what: object) -> None:
        self.what = what

    def train(self) -> object:
        return self.what["train"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DataConfig(class_="tests.trainer.nowhere:X", batch_size=1), "there is no module"),
        (DataConfig(class_="tests.trainer.tiny:Nobody", batch_size=1), "has no class 'Nobody'"),
        (
            DataConfig(class_="tests.trainer.tiny:Points", config={"n": 1}, batch_size=1),
            "argument 'n'",
        ),
        (
            DataConfig(class_="tests.trainer.test_data:Wrong", config={"train": 3}, batch_size=1),
            "must return a mapping of tensors",
        ),
        (
            DataConfig(
                class_="tests.trainer.test_data:Wrong",
                config={"train": {"x": torch.zeros(2), "y": torch.zeros(3)}},
                batch_size=1,
            ),
            "equally long",
        ),
        (
            DataConfig(
                class_="tests.trainer.test_data:Wrong",
                config={"train": {"x": torch.zeros(2)}},
                batch_size=1,
            ),
            "has no method held_out",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(config, said, tmp_path):
    with pytest.raises(BadPlugin, match=said):
        open_data(config, tmp_path)
