"""`transformers` is the oracle: same names, same logits, for each architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from backends.models.config import DecoderConfig, UnsupportedModel
from backends.models.decoder import Decoder
from tests.backends.models.shapes import SHAPES, config


def reference(values: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(values)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values),
        attn_implementation="sdpa",
        dtype=dtype,  # `.to(dtype)` afterwards would round the rotary frequencies too
    ).eval()


def twins(name: str, dtype: torch.dtype) -> tuple[Decoder, Any]:
    torch.manual_seed(7)
    ours, theirs = Decoder(**config(name)).eval(), reference(config(name), dtype)
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.endswith(("bias", "norm.weight")):  # ones and zeros would hide a mistake
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.to(dtype), theirs


@pytest.mark.parametrize("name", SHAPES)
def test_logits_are_those_of_transformers(name: str) -> None:
    ours, theirs = twins(name, torch.float32)
    tokens = torch.randint(97, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen3"])
def test_bf16_rounds_no_more_than_transformers_does(name: str) -> None:
    ours, theirs = twins(name, torch.bfloat16)
    exact, _ = twins(name, torch.float32)
    exact.load_state_dict(ours.state_dict())
    tokens = torch.randint(97, (2, 24))
    with torch.no_grad():
        truth = exact(tokens)
        error, allowed = (ours(tokens) - truth).abs(), (theirs(tokens).logits - truth).abs()
    assert 0 < error.mean() < 1.2 * allowed.mean()
    assert error.max() < 2 * allowed.max()


def test_loss_is_that_of_transformers() -> None:
    ours, theirs = twins("llama", torch.float32)
    tokens = torch.randint(97, (2, 24))
    labels = tokens.clone()
    labels[0, :9] = labels[1, 20:] = -100
    loss, _ = ours.loss({"tokens": tokens, "labels": labels})
    torch.testing.assert_close(loss, theirs(tokens, labels=labels).loss)
    whole, _ = ours.loss({"tokens": tokens})
    torch.testing.assert_close(whole, theirs(tokens, labels=tokens).loss)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = Decoder(**config("qwen3-tied", initializer_range=0.02))
    tokens = torch.arange(24).repeat(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses: list[Tensor] = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(model.loss({"tokens": tokens})[0])
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 4 and losses[-1] < 0.3


def test_built_on_meta_and_filled_it_is_the_same_model() -> None:
    with torch.device("meta"):
        model = Decoder(**config("llama-tied"))
    assert all(p.is_meta for p in model.parameters()) and not list(model.buffers())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    source = Decoder(**config("llama-tied")).eval()
    model.load_state_dict(source.state_dict(), assign=True)
    tokens = torch.randint(97, (1, 9))
    assert torch.equal(model.eval()(tokens), source(tokens))


def test_the_head_of_a_deep_model_starts_no_larger() -> None:
    model = Decoder(**config("llama", num_hidden_layers=8, initializer_range=0.02))
    assert model.model.layers[0].mlp.down_proj.weight.std() < 0.007
    assert 0.018 < model.model.layers[0].mlp.up_proj.weight.std() < 0.022


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_type"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "original_max_position"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_it_cannot_compute_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        DecoderConfig.parse(config("llama") | changes)


def test_the_architecture_may_be_named_by_its_class_alone() -> None:
    values = config("qwen2")
    del values["model_type"]
    assert DecoderConfig.parse(values | {"architectures": ["Qwen2ForCausalLM"]}).qkv_bias
