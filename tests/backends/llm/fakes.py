"""Networks and listeners for the tests of the engine.

`HashNetwork` keeps each token and its position in the cache, and its logits are a hash of all that
it reads back through the pages: whatever is wrong with pages, slots or positions changes the text.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.llm.attention import KVCache
from backends.llm.engine import Engine
from backends.llm.generation import EngineLoad, Generation, Output, Sampling
from backends.llm.step import Step

VOCABULARY = 61


class HashNetwork:
    """Exact in any batch. `salt` stands for its weights."""

    layers, kv_heads, head_dim = 1, 1, 1
    dtype, device = torch.float64, torch.device("cpu")

    def __init__(
        self, salt: int = 0, *, vocabulary: int = VOCABULARY, max_context: int = 512
    ) -> None:
        self.salt, self.vocabulary, self.max_context = salt, vocabulary, max_context
        self.steps: list[tuple[int, int]] = []  # tokens, sequences
        self.closed = False

    def page_bytes(self, page_size: int) -> int:
        return 2 * 8 * page_size

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        shape = (1, pages, 1, page_size, 1)
        return KVCache(torch.zeros(shape, dtype=self.dtype), torch.zeros(shape, dtype=self.dtype))

    def copy_pages(self, cache: KVCache, sources_M: Tensor, targets_M: Tensor) -> None:
        for tensor in cache:
            tensor[:, targets_M] = tensor[:, sources_M]

    def load_(self, state: Mapping[str, Tensor]) -> None:
        self.salt = int(state["salt"])

    def close(self) -> None:
        self.closed = True

    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        check_step(step, cache)
        self.steps.append((len(step.tokens_T), len(step.contexts_S)))
        size = cache.page_size
        cells = cache.keys_NPKZD[0, :, 0, :, 0], cache.values_NPKZD[0, :, 0, :, 0]
        for cell, what in zip(cells, (step.tokens_T, step.positions_T), strict=True):
            cell[step.slots_T // size, step.slots_T % size] = what.to(self.dtype)
        sequence_T = torch.repeat_interleave(
            torch.arange(len(step.contexts_S)), step.starts_S1.diff().long()
        )
        rows = []
        for row in step.logits_L.tolist():
            context = int(step.positions_T[row]) + 1
            pages = step.pages_SP[sequence_T[row]].long()
            tokens, positions = (cell[pages].flatten()[:context].long() for cell in cells)
            assert torch.equal(positions, torch.arange(context)), "positions as they were written"
            rows.append(self._logits(tokens))
        return torch.stack(rows) if rows else torch.zeros(0, self.vocabulary)

    def _logits(self, tokens: Tensor) -> Tensor:
        places = torch.arange(1, len(tokens) + 1)
        state = int((tokens * (places * 2654435761 % 1000003)).sum()) * 31 + self.salt
        words = np.arange(self.vocabulary, dtype=np.uint64) + np.uint64(state % 2**60)
        for _ in range(3):
            words = (words ^ (words >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return torch.from_numpy((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-22))


def check_step(step: Step, cache: KVCache) -> None:
    """The invariants of `Step`."""
    starts, contexts = step.starts_S1.tolist(), step.contexts_S.tolist()
    assert starts[0] == 0 and starts[-1] == len(step.tokens_T) == len(step.positions_T)
    slots = step.slots_T.tolist()
    assert len(set(slots)) == len(slots) and min(slots) >= cache.page_size, "a slot of its own"
    assert max(slots) < cache.pages * cache.page_size
    for s, context in enumerate(contexts):
        span = slice(starts[s], starts[s + 1])
        count = starts[s + 1] - starts[s]
        assert count > 0
        assert step.positions_T[span].tolist() == list(range(context - count, context))
        pages = step.pages_SP[s].long()
        where = pages[step.positions_T[span] // cache.page_size] * cache.page_size
        assert torch.equal(where + step.positions_T[span] % cache.page_size, step.slots_T[span])
    assert step.max_context == max(contexts)
    assert step.max_query == max(b - a for a, b in pairwise(starts))


class FlakyNetwork(HashNetwork):
    """Raises on a step with the token `poison`; gives NaN to sequences whose last is `nan`."""

    def __init__(self, *, poison: int = -1, nan: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.poison, self.nan = poison, nan

    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        if bool((step.tokens_T == self.poison).any()):
            raise RuntimeError("out of luck")
        logits = super().__call__(step, cache)
        logits[step.tokens_T[step.logits_L] == self.nan] = torch.nan
        return logits


class Gated(HashNetwork):
    """Waits before each step until it is let through."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        self.entered.release()
        assert self.gate.acquire(timeout=30)
        return super().__call__(step, cache)

    def let(self, steps: int = 1) -> None:
        self.gate.release(steps)


class Listener:
    """What an engine emits, checked as it comes: nothing after a choice's finish."""

    def __init__(self) -> None:
        self.tokens: dict[tuple[Hashable, int], list[int]] = defaultdict(list)
        self.outputs: dict[tuple[Hashable, int], list[Output]] = defaultdict(list)
        self.finish: dict[tuple[Hashable, int], Output] = {}
        self.batches: list[list[Output]] = []
        self.faults: list[BaseException] = []
        self._news = threading.Condition()

    def __call__(self, outputs: list[Output]) -> None:
        with self._news:
            self.batches.append(outputs)
            for output in outputs:
                choice = output.key, output.choice
                if choice in self.finish:
                    self.faults.append(AssertionError(f"{choice} had ended: {output}"))
                self.tokens[choice] += output.tokens
                self.outputs[choice].append(output)
                if output.finish is not None:
                    self.finish[choice] = output
            self._news.notify_all()

    def wait(self, choices: int) -> None:
        """Until so many have ended."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.finish) >= choices, 30), self.finish
        assert not self.faults, self.faults

    def wait_tokens(self, key: Hashable, count: int, choice: int = 0) -> None:
        with self._news:
            assert self._news.wait_for(lambda: len(self.tokens[key, choice]) >= count, 30)


def generation(
    key: Hashable, prompt: Iterable[int], max_tokens: int = 8, **options: Any
) -> Generation:
    """Options of `Generation` and of `Sampling`; greedy unless they say otherwise."""
    own = {name for name in Generation.__dataclass_fields__ if name != "sampling"}
    outer = {name: value for name, value in options.items() if name in own}
    inner = {name: value for name, value in options.items() if name not in own}
    inner.setdefault("temperature", 0.0)
    return Generation(
        key=key, prompt=list(prompt), sampling=Sampling(max_tokens=max_tokens, **inner), **outer
    )


def run(
    generations: Sequence[Generation], network: Any = None, **options: Any
) -> tuple[Listener, Engine]:
    """All of them through one engine, which is closed and sound afterwards."""
    listener = Listener()
    crashes: list[BaseException] = []
    options = {"pages": 128, "page_size": 4, "crashed": crashes.append} | options
    engine = Engine(network or HashNetwork(), listener, **options)
    engine.call(one_thread)
    for each in generations:
        engine.submit(each)
    engine.start()
    listener.wait(sum(each.n for each in generations))
    at_rest(engine)
    assert engine.close()
    assert options["crashed"] != crashes.append or not crashes, crashes
    return listener, engine


def one_thread() -> None:
    """Tensors this small are slower on several, much slower where others compute too."""
    torch.set_num_threads(1)


def at_rest(engine: Engine) -> None:
    """Once it has nothing to do: its pages are all there."""
    loads: list[EngineLoad] = []
    for _ in range(3):  # between two of them, the engine goes on by a step at least
        done = threading.Event()

        def look(done: threading.Event = done) -> None:
            engine._scheduler.check()
            loads.append(engine._meter.load(engine._scheduler))
            done.set()

        engine.call(look)
        assert done.wait(30)
    assert loads[-1].running == loads[-1].waiting == 0
    assert loads[-1].pages_free + loads[-1].pages_cached == loads[-1].pages_total


def alone(each: Generation, network: Any = None, **options: Any) -> Listener:
    listener, _ = run([each], network, **options)
    return listener


class ListMask:
    """Allows what stands in `steps[i]` at the i-th token; ends with the last."""

    def __init__(self, steps: Sequence[Sequence[int]], vocabulary: int = VOCABULARY) -> None:
        self._steps, self._vocabulary, self._at = steps, vocabulary, 0
        self.accepted: list[int] = []

    def allowed(self) -> NDArray[np.uint32]:
        words = np.zeros(-(-self._vocabulary // 32), np.uint32)
        for token in self._steps[self._at]:
            words[token // 32] |= np.uint32(1 << (token % 32))
        return words

    def accept(self, token: int) -> bool:
        assert token in self._steps[self._at]
        self.accepted.append(token)
        self._at += 1
        return self._at == len(self._steps)
