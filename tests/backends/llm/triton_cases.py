"""The cases of `test_attention_triton`; on the GPU if there is one, else interpreted."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from backends.llm.attention import Geometry, KVCache, PlainKernels, Plan
from backends.llm.attention.kernels import HeadNorms
from backends.llm.attention.triton import TritonKernels
from backends.llm.network import DecoderNetwork
from backends.llm.step import Step
from tests.backends.llm.pager import Pager
from tests.backends.llm.test_network import decoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GEOMETRIES = {
    "grouped": Geometry(6, 2, 32, 1e-5),
    "alone": Geometry(3, 3, 16, 1e-5),
    "odd": Geometry(9, 3, 24, 1e-6),  # neither a power of two
    "one key head": Geometry(20, 1, 64, 1e-5),
    "of seven": Geometry(7, 1, 80, 1e-5),
    "wide": Geometry(4, 2, 128, 1e-5),
}


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE)


def step(queries: list[int], contexts: list[int], page_size: int = 16) -> tuple[Step, int]:
    """Pages dealt at random; also how many there are."""
    needs = [-(-c // page_size) for c in contexts]
    order = (torch.randperm(sum(needs)) + 1).tolist()
    table = [[order.pop() for _ in range(n)] + [0] * (max(needs) - n) for n in needs]
    slots = [
        table[s][p // page_size] * page_size + p % page_size
        for s, (q, c) in enumerate(zip(queries, contexts, strict=True))
        for p in range(c - q, c)
    ]
    starts = [sum(queries[:s]) for s in range(len(queries) + 1)]
    made = partial(torch.tensor, device=DEVICE)
    empty = made([], dtype=torch.int64)
    return Step(
        empty,
        empty,
        made(slots),
        made(starts, dtype=torch.int32),
        made(contexts, dtype=torch.int32),
        made(table, dtype=torch.int32),
        empty,
        max(queries),
        max(contexts),
    ), sum(needs) + 1


def plan(g: Geometry, queries: list[int], contexts: list[int], dtype: torch.dtype) -> Plan:
    made, pages = step(queries, contexts)
    cache = KVCache(*(tensor(2, pages, g.kv_heads, 16, g.head_dim, dtype=dtype) for _ in range(2)))
    for part in cache:
        part[:, 0] = torch.nan  # the reserved page is never read
    angles = tensor(sum(queries), g.head_dim // 2).repeat(1, 2)
    return Plan(made, cache, angles.cos().to(dtype), angles.sin().to(dtype))


@pytest.mark.parametrize(
    ("name", "processors"),
    [("odd", 1), ("grouped", 5), ("one key head", 5), ("of seven", 1), ("wide", 5)],
)
def test_decode(name: str, processors: int) -> None:
    torch.manual_seed(1)
    g = GEOMETRIES[name]
    ours = TritonKernels(g, processors=processors)
    contexts = [1, 17, 150]
    p = plan(g, [1] * 3, contexts, torch.float32)
    q = tensor(3, g.heads, g.head_dim)
    assert (ours.splits(3) > 1) == (processors == 5)
    torch.testing.assert_close(
        ours.attend(q, 1, p), PlainKernels(g).attend(q, 1, p), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["odd", "one key head", "of seven", "wide"])
@pytest.mark.parametrize(("queries", "contexts"), [([15], [15]), ([1, 47, 1], [40, 70, 1])])
def test_prefill(name: str, queries: list[int], contexts: list[int]) -> None:
    torch.manual_seed(2)
    g = GEOMETRIES[name]
    p = plan(g, queries, contexts, torch.float32)
    q = tensor(sum(queries), g.heads, g.head_dim)
    found = TritonKernels(g, processors=1).attend(q, 0, p)
    torch.testing.assert_close(found, PlainKernels(g).attend(q, 0, p), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "normed"), [("odd", True), ("alone", False)])
def test_write_kv(name: str, normed: bool) -> None:
    torch.manual_seed(3)
    g = GEOMETRIES[name]
    norms = HeadNorms(tensor(g.head_dim), tensor(g.head_dim)) if normed else None
    p = plan(g, [1, 3], [9, 20], torch.float32)
    other = p._replace(cache=KVCache(*(t.clone() for t in p.cache)))
    qkv = tensor(4, (g.heads + 2 * g.kv_heads) * g.head_dim)
    found = TritonKernels(g, processors=1).write_kv(qkv, norms, 1, p)
    wanted = PlainKernels(g).write_kv(qkv, norms, 1, other)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, two in zip(p.cache, other.cache, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("adds", [False, True])
def test_add_norm(adds: bool) -> None:
    g = GEOMETRIES["odd"]
    x, delta, weight = tensor(3, 72), tensor(3, 72), tensor(72)
    wanted = PlainKernels(g).add_norm(x.clone(), delta if adds else None, weight)
    found = TritonKernels(g, processors=1).add_norm(x, delta if adds else None, weight)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_gate() -> None:
    g = GEOMETRIES["odd"]
    both = tensor(3, 2 * 1100) * 4
    found = TritonKernels(g, processors=1).gate(both)
    torch.testing.assert_close(found, PlainKernels(g).gate(both), rtol=1e-5, atol=1e-6)


def test_a_whole_network() -> None:
    model = decoder("qwen3")
    kernels: Any = partial(TritonKernels, processors=2)
    ours = DecoderNetwork(model.config, dtype=torch.float32, device=DEVICE, kernels=kernels)
    plain = DecoderNetwork(model.config, dtype=torch.float32, device=DEVICE)
    found = []
    for network in (ours, plain):
        network.load_(model.state_dict())
        pager = Pager(network, pages=8)
        pager.run({"a": [5, 3, 8, 1, 1]})
        found.append(
            [*pager.run({"a": [7], "b": [2, 4]}).values(), *pager.run({"b": [9]}).values()]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_bf16_rounds_as_torch_does() -> None:
    if DEVICE == "cpu":
        pytest.skip("the interpreter has no bfloat16 arithmetic of its own")
    g = GEOMETRIES["grouped"]
    p = plan(g, [1] * 3, [70, 3, 300], torch.bfloat16)
    q = tensor(3, g.heads, g.head_dim, dtype=torch.bfloat16)
    found = TritonKernels(g, 132).attend(q, 0, p)
    torch.testing.assert_close(found, PlainKernels(g).attend(q, 0, p), rtol=2e-2, atol=1e-2)
