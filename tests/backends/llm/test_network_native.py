"""The C++ step against torch: same weights, same pages, the same logits to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.llm.native import Library, Unavailable, load
from backends.llm.native import library as native
from backends.llm.network import DecoderNetwork
from backends.llm.network_native import NativeNetwork, misfit
from backends.models.config import DecoderConfig, UnsupportedModel
from backends.models.decoder import Decoder
from tests.backends.llm.fakes import generation
from tests.backends.llm.fakes import run as through_an_engine
from tests.backends.llm.pager import Pager
from tests.backends.models.shapes import config

WIDE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 160, "vocab_size": 101}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 2},
    "llama-tied": {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 3},
    "llama-biased": {"head_dim": 32, "num_attention_heads": 7, "num_key_value_heads": 1},
    "llama3": {"head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {"head_dim": 32, "num_attention_heads": 10, "num_key_value_heads": 2},
    "qwen3": {"head_dim": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3-tied": {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1},
}


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return load()
    except Unavailable as error:
        pytest.skip(str(error))


def decoder(name: str, seed: int = 3) -> Decoder:
    torch.manual_seed(seed)
    values = config(name, **WIDE, **SHAPES[name], max_position_embeddings=4096)
    model = Decoder(**values).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.bfloat16()


def tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = torch.randint(
        101, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    return found


def run(network: Any, *steps: dict[str, list[int]], page_size: int = 16) -> list[Tensor]:
    pager = Pager(network, pages=200, page_size=page_size)
    found: list[Tensor] = []
    for chunks in steps:
        found += pager.run(chunks).values()
    return found


def compare(model: Decoder, library: Library, *steps: dict[str, list[int]], **more: Any) -> None:
    """Both round; the native one may be no further from the exact logits than torch is."""
    ours = NativeNetwork(model.config, library)
    torchs = DecoderNetwork(model.config)
    exact = DecoderNetwork(model.config, dtype=torch.float32)
    for network in (ours, torchs, exact):
        network.load_(model.state_dict())
    one, other, truth = (torch.cat(run(n, *steps, **more)) for n in (ours, torchs, exact))
    error, allowed = (one - truth).abs(), (other - truth).abs()
    assert 0 < error.mean() < 1.15 * allowed.mean()
    assert error.max() < 2 * allowed.max()


@pytest.mark.parametrize("name", SHAPES)
def test_mixed_steps(name: str, library: Library) -> None:
    steps = (
        {"a": tokens(37)},
        {"a": tokens(1, 1), "b": tokens(5, 2), "c": tokens(1, 3)},
        {"c": tokens(17, 4), "a": tokens(1, 5), "b": tokens(1, 6), "d": tokens(16, 7)},
        {name: tokens(1, 8) for name in "abcd"},
    )
    compare(decoder(name), library, *steps)


@pytest.mark.parametrize("page_size", [16, 48, 64])
def test_long_contexts_split_over_threads(page_size: int, library: Library) -> None:
    steps = ({"a": tokens(1031)}, {"a": tokens(1, 1)}, {"a": tokens(3, 2), "b": tokens(2, 3)})
    compare(decoder("llama"), library, *steps, page_size=page_size)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(threads: int, library: Library) -> None:
    before = torch.get_num_threads()
    model = decoder("qwen3")
    ours = NativeNetwork(model.config, library)
    ours.load_(model.state_dict())
    steps = ({"a": tokens(700), "b": tokens(13, 1)}, {"a": tokens(1, 2), "b": tokens(1, 3)})
    try:
        torch.set_num_threads(threads)
        found = run(ours, *steps)
        torch.set_num_threads(2)
        wanted = run(ours, *steps)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", ["llama-biased", "qwen3"])
def test_int8_is_the_same_quantised_model(name: str, library: Library) -> None:
    model = decoder(name)
    ours = NativeNetwork(model.config, library, int8=True)
    torchs = DecoderNetwork(model.config, int8=True)
    exact = DecoderNetwork(model.config, dtype=torch.float32, int8=True)
    plain = DecoderNetwork(model.config, dtype=torch.float32)
    for network in (ours, torchs, exact, plain):
        network.load_(model.state_dict())
    steps = ({"a": tokens(30)}, {"a": tokens(1, 1), "b": tokens(2, 2)})
    one, other, truth, whole = (torch.cat(run(n, *steps)) for n in (ours, torchs, exact, plain))
    error, allowed = (one - truth).abs().mean(), (other - truth).abs().mean()
    assert 0 < error < 1.15 * allowed
    assert 0 < (truth - whole).abs().mean() < 0.1 * whole.abs().mean()


def test_without_instructions_for_bf16(library: Library, tmp_path: Path) -> None:
    native._compile("g++", tmp_path / "step.so", "-mno-avx512bf16")
    plain = Library(tmp_path / "step.so")
    for name in ("llama", "qwen3"):
        compare(decoder(name), plain, {"a": tokens(37)}, {"a": tokens(1, 1), "b": tokens(3, 2)})


def test_which_rows_come_back(library: Library) -> None:
    model = decoder("llama")
    ours = NativeNetwork(model.config, library)
    ours.load_(model.state_dict())
    pager = Pager(ours, pages=20, page_size=16)
    step = pager.step({"a": tokens(20), "b": tokens(4, 1)})
    every = ours(step, pager.cache)
    some = ours(step._replace(logits_L=torch.tensor([19, 23])), pager.cache)
    torch.testing.assert_close(some, every[[19, 23]], rtol=0, atol=0)
    none = step._replace(logits_L=torch.tensor([], dtype=torch.int64))
    assert ours(none, pager.cache).shape == (0, 101)


def test_copied_pages_are_the_same_context(library: Library) -> None:
    model = decoder("qwen2")
    ours = NativeNetwork(model.config, library)
    ours.load_(model.state_dict())
    pager = Pager(ours, pages=20, page_size=16)
    pager.run({"a": tokens(37)})
    old = pager._pages["a"]
    new = [pager._free.pop() for _ in old]
    for tensor in pager.cache:
        tensor[:, new] = tensor[:, old]
    pager._pages["b"], pager._lengths["b"] = new, 37
    found = pager.run({"a": tokens(1, 1), "b": tokens(1, 1)})
    assert torch.equal(found["a"], found["b"])


def test_new_weights_take_the_place_of_the_old(library: Library) -> None:
    first, second = decoder("llama"), decoder("llama", 9)
    ours, fresh = (NativeNetwork(first.config, library) for _ in range(2))
    ours.load_(first.state_dict())
    ours.load_(second.state_dict())
    fresh.load_(second.state_dict())
    steps = ({"a": tokens(9)},)
    assert torch.equal(run(ours, *steps)[0], run(fresh, *steps)[0])
    state = second.state_dict()
    del state["model.norm.weight"]
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight"):
        ours.load_(state)


def test_what_does_not_fit_is_said(library: Library) -> None:
    for key, size in (("hidden_size", 40), ("intermediate_size", 100), ("head_dim", 80)):
        values = config("llama", **WIDE | {"head_dim": 32} | {key: size})
        parsed = DecoderConfig.parse(values)
        assert f"{key} {size}" in (misfit(parsed) or "")
        with pytest.raises(UnsupportedModel, match=key):
            NativeNetwork(parsed, library)
    with pytest.raises(ValueError, match="page_size 8"):
        NativeNetwork(decoder("llama").config, library).new_cache(4, 8)


def test_what_is_missing_is_said_and_what_to_do(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="no C\\+\\+ compiler 'no-such': install g"):
        load({"CXX": "no-such"})
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(Unavailable, match="XDG_CACHE_HOME may name a folder"):
        load({"XDG_CACHE_HOME": str(blocked)})
    monkeypatch.setattr(native, "_instructions", lambda: frozenset({"avx512f", "avx512bw"}))
    with pytest.raises(Unavailable, match="this CPU has no avx512dq"):
        load({})


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path, library: Library) -> None:
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho no room >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(Unavailable, match="could not compile it: no room"):
        load({"CXX": str(broken), "XDG_CACHE_HOME": str(tmp_path)})
    assert not list((tmp_path / "penstock").rglob("*.so"))


def test_it_is_compiled_once(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_(compiler: str, path: Path) -> None:
        compiled.append(path)
        original(compiler, path)

    original = native._compile
    monkeypatch.setattr(native, "_compile", compile_)
    for _ in range(2):
        assert load({"PATH": "", "XDG_CACHE_HOME": str(tmp_path)}) is not None
    assert len(compiled) == 1 and compiled[0].is_file()


@pytest.mark.parametrize("int8", [False, True])
def test_what_else_is_in_a_step_and_how_it_is_cut_changes_no_bit(
    library: Library, int8: bool
) -> None:
    model = decoder("llama-biased")
    prompts = {
        name: torch.randint(0, 101, (size,)).tolist()
        for name, size in (("a", 700), ("b", 5), ("c", 300), ("d", 33))
    }

    def said(threads: int, *steps: dict[str, list[int]]) -> list[Tensor]:
        network = NativeNetwork(model.config, library, int8=int8)
        network.load_(model.state_dict())
        pager, before = Pager(network, pages=80, page_size=16), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return [pager.run(step)["a"] for step in steps if "a" in step]
        finally:
            torch.set_num_threads(before)

    next = {"a": [7]}
    whole, alone = said(2, {"a": prompts["a"]}, next)
    rest = {name: [3] for name in "bcd"}
    for threads in (1, 2, 3):
        together = said(threads, prompts, next | rest)
        assert torch.equal(together[0][-1:], whole[-1:]) and torch.equal(together[1], alone)
        parts = said(threads, {"a": prompts["a"][:413]}, {"a": prompts["a"][413:]}, next)
        assert torch.equal(parts[1][-1:], whole[-1:]) and torch.equal(parts[2], alone)


def test_an_engine_says_the_same_token_for_token_whatever_way_it_is_asked(library: Library) -> None:
    model = decoder("qwen2")
    network = NativeNetwork(model.config, library)
    network.load_(model.state_dict())
    shared = torch.randint(0, 101, (150,)).tolist()
    asked = [
        generation(
            i,
            shared[: (0, 30, 64, 150)[i % 4]] + torch.randint(0, 101, (1 + i,)).tolist(),
            12,
            temperature=float(i % 3 > 0),
            top_p=0.9 if i % 3 > 1 else 1.0,
            seed=i,
            n=1 + i % 2,
        )
        for i in range(10)
    ]
    ways: list[dict[str, Any]] = [
        {"token_budget": 4000, "reuse": False},
        {"token_budget": 4000},  # a burst that shares what it computes
        {"token_budget": 64, "max_running": 6, "pages": 13},
    ]
    told = [
        through_an_engine(asked, network, **{"page_size": 16, "pages": 300} | way) for way in ways
    ]
    assert told[1][1].load().hit_tokens > 0 and told[2][1]._scheduler.preemptions > 0
    assert told[0][0].tokens == told[1][0].tokens == told[2][0].tokens
    for each in asked[:3]:
        alone, _ = through_an_engine([each], network, page_size=16, pages=300)
        for choice in range(each.n):
            assert alone.tokens[each.key, choice] == told[0][0].tokens[each.key, choice]
