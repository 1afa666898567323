"""The engine on a GPU, one step ahead of it, against the engine on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.llm.engine import Engine
from backends.llm.engine.staging import put
from backends.llm.network import DecoderNetwork
from backends.models.decoder import Decoder
from tests.backends.llm.engine.test_engine import prompts
from tests.backends.llm.engine.test_staging import ARRAYS
from tests.backends.llm.fakes import Listener, ListMask, generation, run
from tests.backends.models.shapes import config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

WISHES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.9, "top_k": 7},
    {"temperature": 0.9, "top_p": 0.8, "min_p": 0.01},
    {"temperature": 0.9, "min_p": 0.1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    {"logit_bias": ((5, 2.0),), "logprobs": 3, "prompt_logprobs": True},
    {"min_tokens": 4, "stop_ids": frozenset(range(20))},
    {"temperature": 1.0, "n": 3},
    {"mask": lambda: ListMask([[1, 2, 3], [4, 70], [96, 33]], 97)},
]


def network(device: str) -> DecoderNetwork:
    torch.manual_seed(5)
    model = Decoder(**config("qwen3")).eval().requires_grad_(False)
    made = DecoderNetwork(model.config, dtype=torch.float32, device=device)
    made.load_(model.state_dict())
    return made


def asked() -> list[Any]:
    return [
        generation(i, p[:30], 8, seed=i, **WISHES[i % len(WISHES)])
        for i, p in enumerate(prompts(2 * len(WISHES), seed=3))
    ]


@pytest.mark.parametrize("pages", [400, 24])
def test_a_gpu_says_what_a_cpu_says(pages: int) -> None:
    here, _ = run(asked(), network("cpu"), token_budget=24, max_running=8)
    there, engine = run(asked(), network("cuda"), token_budget=24, max_running=8, pages=pages)
    assert engine._ahead == 1
    assert there.tokens == here.tokens
    for choice, output in here.finish.items():
        assert there.finish[choice].finish == output.finish
    told, wanted = (x.outputs[6, 0][0].prompt_logprobs for x in (there, here))
    assert told is not None and wanted is not None
    for one, other in zip(told[1:], wanted[1:], strict=True):
        assert one is not None and other is not None
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_what_is_put_there_is_what_was_here() -> None:
    for array, tensor in zip(ARRAYS, put(torch.device("cuda"), *ARRAYS), strict=True):
        assert tensor.is_cuda and (tensor.cpu().numpy() == array).all()


def test_an_engine_on_a_gpu_ends_as_it_should() -> None:
    listener = Listener()
    engine = Engine(network("cuda"), listener, pages=64, page_size=4)
    engine.start()
    engine.submit(generation("a", [1, 2], 50, n=2))
    engine.cancel("a")
    listener.wait(2)
    assert engine.close()
