"""The trainable decoder, over whole sequences, is the oracle of the paged one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backends.llm.network import DecoderNetwork
from backends.llm.step import Step
from backends.models.config import UnsupportedModel
from backends.models.decoder import Decoder
from tests.backends.llm.pager import Pager, mixed
from tests.backends.models.shapes import SHAPES, config

TEXTS = {
    name: torch.randint(97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for name, length in {"a": 23, "b": 9, "c": 16, "d": 1}.items()
}


def decoder(name: str, seed: int = 3) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(**config(name)).eval().requires_grad_(False)
    for key, parameter in model.named_parameters():
        if key.endswith(("bias", "norm.weight")):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def network(model: Decoder, dtype: torch.dtype = torch.float32, **more: Any) -> DecoderNetwork:
    made = DecoderNetwork(model.config, dtype=dtype, **more)
    made.load_(model.state_dict())
    return made


def whole(model: Decoder) -> dict[str, Tensor]:
    return {name: model(torch.tensor([text]))[0] for name, text in TEXTS.items()}


# Beyond its trained context a dynamically scaled model turns all keys anew: no cache has that.
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "llama-dynamic"])
def test_chunks_over_pages_are_the_whole_sequence(name: str) -> None:
    model = decoder(name)
    found, wanted = mixed(network(model), TEXTS), whole(model)
    for text in TEXTS:
        torch.testing.assert_close(found[text], wanted[text], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3"])
def test_bf16_rounds_no_more_than_the_decoder_does(name: str) -> None:
    model = decoder(name).bfloat16()
    rounded = whole(model)
    found, truth = mixed(network(model, torch.bfloat16), TEXTS), whole(model.float())
    for text in TEXTS:
        error, allowed = (found[text] - truth[text]).abs(), (rounded[text] - truth[text]).abs()
        assert 0 < error.mean() < 1.3 * allowed.mean()


def test_only_the_rows_that_are_wanted_come_back() -> None:
    pager = Pager(network(decoder("llama")))
    step = pager.step({"a": TEXTS["a"][:7], "b": TEXTS["b"][:4]})
    every = pager.network(step, pager.cache)
    some = pager.network(step._replace(logits_L=torch.tensor([6, 10])), pager.cache)
    torch.testing.assert_close(some, every[[6, 10]])
    none: Step = step._replace(logits_L=torch.tensor([], dtype=torch.int64))
    assert pager.network(none, pager.cache).shape == (0, 97)


def test_new_weights_take_the_place_of_the_old_where_these_are() -> None:
    first, second = decoder("qwen3", 3), decoder("qwen3", 4)
    served = network(first)
    before = [t.data_ptr() for t in (served._embedding_VC, served._norm_C)]
    served.load_(second.state_dict())
    assert [t.data_ptr() for t in (served._embedding_VC, served._norm_C)] == before
    torch.testing.assert_close(mixed(served, TEXTS)["a"], whole(second)["a"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", ["missing", "shape", "extra"])
def test_weights_that_do_not_fit_change_nothing(fault: str) -> None:
    model = decoder("llama")
    served, state = network(model), decoder("llama", 5).state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    if fault == "missing":
        del state[name]
    elif fault == "shape":
        state[name] = state[name].T
    else:
        name = "model.layers.1.mlp.down_proj.bias"
        state[name] = torch.zeros(32)
    with pytest.raises(UnsupportedModel, match=name):
        served.load_(state)
    torch.testing.assert_close(mixed(served, TEXTS)["a"], whole(model)["a"], rtol=1e-4, atol=1e-5)


def test_a_page_takes_what_is_said() -> None:
    served = network(decoder("qwen3"))
    cache = served.new_cache(10, 16)
    assert cache.pages == 10 and cache.page_size == 16
    assert sum(t.nbytes for t in cache) == 10 * served.page_bytes(16)


@pytest.mark.parametrize("int8", [False, True])
def test_twins_exchange_their_weights_where_these_are(int8: bool) -> None:
    models = decoder("qwen3"), decoder("qwen3", 4)
    served, twin = (
        DecoderNetwork(model.config, dtype=torch.bfloat16, int8=int8, packs=False)
        for model in models
    )
    told = []
    for network, model in zip((served, twin), models, strict=True):
        network.load_(model.state_dict())
        told.append(Pager(network).run({"a": [1, 2, 3]})["a"])
    places = [tensor.data_ptr() for tensor in served._tensors()]
    served.exchange_(twin)
    for network, wanted in ((served, told[1]), (twin, told[0])):
        assert torch.equal(Pager(network).run({"a": [1, 2, 3]})["a"], wanted)
    assert [tensor.data_ptr() for tensor in served._tensors()] == places
    assert not torch.equal(*told)
