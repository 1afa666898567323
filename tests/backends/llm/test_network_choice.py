"""The choice goes by machine and shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.llm import network_choice
from backends.llm.native import Library, Unavailable
from backends.llm.network import DecoderNetwork
from backends.llm.network_choice import choose_network
from backends.llm.network_native import NativeNetwork
from backends.models.config import DecoderConfig
from tests.backends.llm.test_network_native import SHAPES, WIDE
from tests.backends.models.shapes import config

FITTING = DecoderConfig.parse(config("llama", **WIDE, **SHAPES["llama"]))
ODD = DecoderConfig.parse(config("llama"))
USUAL: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cpu", "page_size": 16}


@pytest.mark.parametrize(
    ("decoder", "changes", "why"),
    [
        (ODD, {}, "intermediate_size 48 is not a multiple of 32"),
        (FITTING, {"dtype": torch.float32}, "bfloat16, not torch.float32: set `weights`"),
        (FITTING, {"page_size": 8}, "page_size 8 is not a multiple of 16"),
        (FITTING, {"rank": 1, "world": 2}, "it runs in one process"),
    ],
)
def test_torch_does_what_the_native_one_cannot_and_says_why(
    decoder: DecoderConfig, changes: Any, why: str
) -> None:
    network = choose_network(decoder, **USUAL | changes)
    assert type(network) is DecoderNetwork
    assert why in network.slow


@pytest.mark.parametrize("int8", [False, True])
def test_the_native_one_where_it_can(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        network_choice.load()
    except Unavailable:
        pass
    else:
        assert type(choose_network(FITTING, **USUAL, int8=int8)) is NativeNetwork

    def without() -> Library:
        raise Unavailable("there is no C++ compiler 'g++': install g++")

    monkeypatch.setattr(network_choice, "load", without)
    network = choose_network(FITTING, **USUAL, int8=int8)
    assert type(network) is DecoderNetwork
    assert network.slow.endswith("there is no C++ compiler 'g++': install g++")
