"""The engine alone with random weights of a known shape: `python -m bench.generators.gpu JSON`.

Prints what steps of so many sequences take, what prompts take, what the host does in a step (the
same engine with a network that answers at once), and the rates of the device that these are held
against. On a CPU too, which is how it is tested; its figures count on a GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from backends.llm.attention import KVCache
from backends.llm.engine import Engine
from backends.llm.generation import Generation, Output, Sampling
from backends.llm.network import Network
from backends.llm.network_choice import choose_network
from backends.llm.network_weights import shapes
from backends.llm.step import Step
from backends.models.config import DecoderConfig

PAGE = 16
PATIENCE_S = 300.0
# Of a normal distribution: small enough that bf16 stays finite through all layers.
STD = 0.02
READ_BYTES, PRODUCT = 4 << 30, 8192


class Immediate:
    """A network that has computed already: what a step then takes is the host's."""

    def __init__(self, network: Network, rows: int) -> None:
        self._network = network
        self._logits_LV = torch.zeros(rows, network.vocabulary, device=network.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        return self._logits_LV[: len(step.logits_L)]


class Timed:
    """Gathers when steps gave every sequence a token. `ended` when all of them are finished."""

    def __init__(self, count: int) -> None:
        self._count, self._left = count, count
        self.full: list[float] = []
        self.error = ""
        self.ended = threading.Event()

    def __call__(self, outputs: list[Output]) -> None:
        if sum(bool(output.tokens) for output in outputs) == self._count:
            self.full.append(time.perf_counter())
        self._left -= sum(output.finish is not None for output in outputs)
        self.error = next((o.error for o in outputs if o.error), self.error)
        if self._left <= 0:
            self.ended.set()

    def crashed(self, error: BaseException) -> None:
        self.error = repr(error)
        self.ended.set()


def play(network: Network, batch: int, prompt: int, tokens: int) -> tuple[float, list[float]]:
    """Seconds from the first prompt to the last token, and of each step that was of all. Raises
    RuntimeError."""
    timed = Timed(batch)
    pages = batch * (-(-(prompt + tokens) // PAGE) + 1) + 2
    engine = Engine(
        network,
        timed,
        pages=pages,
        page_size=PAGE,
        token_budget=8192,
        max_running=batch,
        max_waiting=batch,
        reuse=False,
        crashed=timed.crashed,
    )
    sampling = Sampling(temperature=0.0, max_tokens=tokens)
    words = network.vocabulary
    started = time.perf_counter()
    for index in range(batch):
        ids = [(7919 * index + 31 * place) % words for place in range(prompt)]
        engine.submit(Generation(key=index, prompt=ids, sampling=sampling))
    engine.start()
    ended = timed.ended.wait(PATIENCE_S)
    seconds = time.perf_counter() - started
    engine.close()
    if not ended or timed.error:
        raise RuntimeError(timed.error or f"no end within {PATIENCE_S:.0f} s")
    steps = [b - a for a, b in zip(timed.full, timed.full[1:], strict=False)]
    return seconds, steps


def network_of(config: DecoderConfig, device: torch.device) -> Network:
    network = choose_network(config, dtype=torch.bfloat16, device=device, page_size=PAGE)
    made = torch.Generator(device).manual_seed(1)
    state = {}
    for name, shape in shapes(config).items():
        if name.endswith("norm.weight"):
            state[name] = torch.ones(shape, dtype=torch.bfloat16, device=device)
        else:
            values = torch.empty(shape, dtype=torch.bfloat16, device=device)
            state[name] = values.normal_(0, STD, generator=made)
    network.load_(state)
    return network


def rates(device: torch.device) -> dict[str, float]:
    """Bytes read and bf16 operations, a second: the best of ten."""
    small = device.type == "cpu"
    large = torch.ones(READ_BYTES // (64 if small else 4), device=device)
    size = PRODUCT // (16 if small else 1)
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)

    def best(run: Any) -> float:
        found = []
        for _ in range(10):
            _finished(device)
            began = time.perf_counter()
            run()
            _finished(device)
            found.append(time.perf_counter() - began)
        return min(found)

    return {
        "bytes_s": large.nbytes / best(large.sum),
        "flops": 2 * size**3 / best(lambda: a @ a),
    }


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(asked: dict[str, Any]) -> None:
    device = torch.device(asked["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device that torch can use")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    network = network_of(DecoderConfig.parse(asked["config"]), device)
    prompt, tokens = asked["prompt"], asked["tokens"]
    found: dict[str, Any] = {"device": name, "machine": rates(device), "steps": {}}
    play(network, 1, prompt, 4)  # kernels that are built at their first use
    for batch in asked["batches"]:
        play(network, batch, prompt, 4)
        _, steps = play(network, batch, prompt, tokens)
        found["steps"][str(batch)] = statistics.median(steps)
    long, count = asked["long"], asked["long_count"]
    found["prefill_s"] = min(play(network, count, long, 1)[0] for _ in range(3))
    largest: int = max(asked["batches"])
    _, steps = play(Immediate(network, largest), largest, prompt, tokens)
    found["host_s"] = statistics.median(steps)
    print(json.dumps(found))


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    asked: dict[str, Any] = json.loads(arguments[0])
    return asked


if __name__ == "__main__":
    main(parsed(sys.argv[1:]))
