"""The choice goes by machine and shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.llm import network_choice
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
    ("decoder", "changes"),
    [
        (ODD, {}),
        (FITTING, {"dtype": torch.float32}),
        (FITTING, {"page_size": 8}),
        (FITTING, {"rank": 1, "world": 2}),
    ],
)
def test_torch_does_what_the_native_one_cannot(decoder: DecoderConfig, changes: Any) -> None:
    assert type(choose_network(decoder, **USUAL | changes)) is DecoderNetwork


@pytest.mark.parametrize("int8", [False, True])
def test_the_native_one_where_it_can(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if network_choice.load() is not None:
        assert type(choose_network(FITTING, **USUAL, int8=int8)) is NativeNetwork
    monkeypatch.setattr(network_choice, "load", lambda: None)
    assert type(choose_network(FITTING, **USUAL, int8=int8)) is DecoderNetwork
