"""The static inputs and the padding, with a recorder that runs what it was given once more."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.llm.graphs import GraphedNetwork, Replay
from backends.llm.network import DecoderNetwork
from backends.models.decoder import Decoder
from tests.backends.llm.pager import Pager
from tests.backends.models.shapes import config


class Recording:
    """As a graph would: the same tensors in, the same tensor out."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, run: Replay) -> Replay:
        out = run().clone()
        self.sizes.append(len(out))

        def replay() -> torch.Tensor:
            return out.copy_(run())

        return replay


@pytest.fixture
def recording() -> Recording:
    return Recording()


def networks(recording: Recording, seed: int = 1) -> tuple[GraphedNetwork, DecoderNetwork]:
    torch.manual_seed(seed)
    model = Decoder(**config("llama"))
    made = []
    for _ in range(2):
        made.append(DecoderNetwork(model.config, dtype=torch.float32))
        made[-1].load_(model.state_dict())
    return GraphedNetwork(made[0], recorder=lambda _: recording, sizes=(1, 2, 4)), made[1]


def same(pagers: tuple[Pager, Pager], chunks: dict[str, list[int]]) -> None:
    one, other = (pager.run(chunks) for pager in pagers)
    for name in chunks:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_steps_of_any_kind_are_those_of_the_network(recording: Recording) -> None:
    graphed, plain = networks(recording)
    pagers = (Pager(graphed), Pager(plain))
    assert recording.sizes == [4, 2, 1]
    same(pagers, {"a": [1, 2, 3], "b": [4]})
    same(pagers, {"a": [5], "b": [6], "c": [7]})  # three in a graph of four
    same(pagers, {"b": [8]})
    same(pagers, {"c": [9], "a": [1]})
    same(pagers, {"d": [2], "e": [3], "f": [4], "a": [5], "b": [6]})  # more than the largest
    same(pagers, {"a": [7], "f": [8]})
    assert recording.sizes == [4, 2, 1]


def test_fewer_logits_than_sequences(recording: Recording) -> None:
    graphed, plain = networks(recording)
    found = []
    for network in (graphed, plain):
        pager = Pager(network)
        step = pager.step({"a": [1], "b": [2], "c": [3]})
        found.append(network(step._replace(logits_L=torch.tensor([2, 0])), pager.cache).clone())
    assert found[0].shape == (2, 97)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_new_weights_need_no_new_graphs(recording: Recording) -> None:
    graphed, _ = networks(recording)
    pager = Pager(graphed)
    torch.manual_seed(2)
    graphed.load_(Decoder(**config("llama")).state_dict())
    _, plain = networks(recording, seed=2)
    same((pager, Pager(plain)), {"a": [1], "b": [2]})
    assert recording.sizes == [4, 2, 1]


def test_another_cache_gets_graphs_of_its_own_when_it_is_met(recording: Recording) -> None:
    graphed, plain = networks(recording)
    first, second = Pager(graphed), Pager(plain)
    # As when a later version takes over the cache of the one before.
    shared = Pager(plain)
    shared.network = graphed
    assert recording.sizes == [4, 2, 1]
    same((shared, second), {"a": [1], "b": [2]})
    assert recording.sizes == [4, 2, 1, 2]
    same((first, second), {"c": [1]})
    graphed.close()


@pytest.mark.gpu
def test_graphs_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(1)
    model = Decoder(**config("qwen3", head_dim=64, max_position_embeddings=256))
    made: list[Any] = []
    for _ in range(2):
        made.append(DecoderNetwork(model.config, dtype=torch.float32, device="cuda"))
        made[-1].load_(model.state_dict())
    pagers = (Pager(GraphedNetwork(made[0])), Pager(made[1]))
    same(pagers, {"a": [1, 2, 3], "b": [4]})
    for token in range(20):
        same(pagers, {"a": [token], "b": [token + 1], "c": [token + 2]})
        same(pagers, {"b": [token]})
