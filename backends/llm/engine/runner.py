"""Makes a plan into tensors, runs the network on them and samples: the engine's hands.

Owns the KV cache, the live networks by version, and the last token of each row, which stays on the
device: a step that follows reads it there, whether the host knows it yet or not. Decides nothing.
Invariant: `forward` and `sample` only enqueue on a GPU; `Ran.tokens` is where the host waits.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequential
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.llm.attention import KVCache
from backends.llm.engine.plan import Plan
from backends.llm.engine.sampler import Chosen, Likely, Sampler, likely
from backends.llm.engine.sequence import Rows, Table
from backends.llm.engine.staging import put
from backends.llm.network import Network
from backends.llm.step import Step

Masks = Sequential[tuple[int, NDArray[np.uint32]]]


class LikelyRows(NamedTuple):
    """Likely on the host."""

    logprobs: list[float]
    top: list[list[float]]
    top_ids: list[list[int]]


class Ran:
    """A step in flight; reading it waits for the device."""

    def __init__(self, plan: Plan, chosen: Chosen, prompts: list[Likely | None]) -> None:
        self.plan = plan
        self._tokens = _fetch(chosen.tokens_B)
        self.asked, self.tops = chosen.asked, chosen.tops.tolist()
        self._likely = _fetch_likely(chosen.likely)
        self._prompts = [_fetch_likely(found) for found in prompts]
        self._event: torch.cuda.Event | None = None
        if chosen.tokens_B.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def tokens(self) -> Rows:
        """Of `plan.sampled`, BAD where the logits were not finite."""
        if self._event is not None:
            self._event.synchronize()
        tokens: Rows = self._tokens.numpy()
        return tokens

    # These only after `tokens`.

    def likely(self) -> LikelyRows | None:
        return _rows(self._likely)

    def prompts(self) -> list[LikelyRows | None]:
        """For each chunk of the plan: of the tokens that follow its own in the prompt, if asked."""
        return [_rows(found) for found in self._prompts]


class Launched(NamedTuple):
    """Forward is enqueued; its first rows are sampled, the others are of prompts."""

    plan: Plan
    logits_LV: Tensor


class Runner:
    def __init__(self, network: Network, table: Table, pages: int) -> None:
        self.device, self._like = network.device, network
        self._networks: dict[str, Network] = {}
        # Page 0 is reserved.
        self.cache: KVCache = network.new_cache(pages + 1, table.page_size)
        self.begin(table)

    def begin(self, table: Table) -> None:
        """Nobody runs: the rows are another table's from now on."""
        self.table = table
        self.sampler = Sampler(table, self._like.vocabulary, self.device)
        self._last_R = torch.zeros(table.rows, dtype=torch.int64, device=self.device)

    def attach(self) -> None:
        """The calling thread is the one that runs steps."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    # ------------------------------------------------------------------------------------ versions

    def check(self, version: str, network: Network) -> None:
        """Raises ValueError where it cannot share the cache of the others."""
        for name in ("layers", "kv_heads", "head_dim", "vocabulary", "dtype", "device"):
            one, other = getattr(self._like, name), getattr(network, name)
            if one != other:
                raise ValueError(f"version {version}: {name} is {other}, the engine's is {one}")
        if network.max_context < self._like.max_context:
            raise ValueError(
                f"version {version}: its context of {network.max_context} is shorter than "
                f"{self._like.max_context}, which was promised"
            )

    def add(self, version: str, network: Network) -> None:
        self._networks[version] = self._like = network

    def drop(self, version: str) -> None:
        network = self._networks.pop(version)
        if network is self._like and self._networks:
            self._like = next(iter(self._networks.values()))
        network.close()

    def swap(self, old: str, version: str, load: Callable[[Network], None]) -> None:
        """`load` gives that network other weights, in place; then it has another name."""
        load(self._networks[old])
        self._networks[version] = self._networks.pop(old)

    # ---------------------------------------------------------------------------------- each step

    @torch.inference_mode()
    def forward(self, plan: Plan) -> Launched:
        network = self._networks[plan.version]
        for sequence in plan.placed:
            self.sampler.place(sequence)
        if plan.copies:
            pages = put(self.device, *np.array(plan.copies, np.int64).T.copy())
            network.copy_pages(self.cache, *pages)
        step = self._step(plan)
        return Launched(plan, network(step, self.cache))

    @torch.inference_mode()
    def sample(self, launched: Launched, masks: Masks) -> Ran:
        plan, logits_LV = launched
        table, rows = self.table, plan.sampled
        count = len(rows)
        prompts = self._prompt_logprobs(plan, logits_LV[count:])
        positions = plan.places - table.prompt[rows]
        chosen = self.sampler.choose(logits_LV[:count], rows, positions, masks)
        if count:
            # What is BAD ends; until the host sees that, a step may take it as its input.
            (rows_B,) = put(self.device, rows)
            self._last_R[rows_B] = chosen.tokens_B.clamp(min=0)
        return Ran(plan, chosen, prompts)

    def _step(self, plan: Plan) -> Step:
        """Decodes first, one token each, then the chunks."""
        table, size = self.table, self.table.page_size
        decodes, chunks = plan.decodes, plan.chunks
        count = len(decodes)
        queries = np.array([1] * count + [c.stop - c.start for c in chunks], np.int64)
        starts = np.zeros(len(queries) + 1, np.int32)
        np.cumsum(queries, out=starts[1:])
        total = int(starts[-1])
        rows = np.concatenate([decodes, np.array([c.row for c in chunks], np.int64)])
        positions, tokens = np.empty(total, np.int64), np.zeros(total, np.int64)
        contexts = np.empty(len(queries), np.int32)
        contexts[:count] = plan.after[:count]
        positions[:count] = contexts[:count] - 1
        for place, chunk in enumerate(chunks, count):
            span = slice(starts[place], starts[place + 1])
            positions[span] = np.arange(chunk.start, chunk.stop)
            tokens[span] = table.tokens[chunk.row, chunk.start : chunk.stop]
            contexts[place] = chunk.stop
        row_of_token = rows if total == count else np.repeat(rows, queries)
        slots = table.pages[row_of_token, positions // size] * np.int64(size) + positions % size
        longest = int(contexts.max())
        pages = table.pages[rows, : -(-longest // size)]
        wanted = _wanted(plan, starts)
        tokens_T, positions_T, slots_T, starts_S1, contexts_S, pages_SP, logits_L, decodes_D = put(
            self.device, tokens, positions, slots, starts, contexts, pages, wanted, decodes
        )
        if count:
            tokens_T[:count] = self._last_R[decodes_D]
        return Step(
            tokens_T,
            positions_T,
            slots_T,
            starts_S1,
            contexts_S,
            pages_SP,
            logits_L,
            max_query=int(queries.max()),
            max_context=longest,
        )

    def _prompt_logprobs(self, plan: Plan, logits_LV: Tensor) -> list[Likely | None]:
        found: list[Likely | None] = []
        start = 0
        for chunk in plan.chunks:
            stop = start + chunk.prompt_rows
            if stop == start:
                found.append(None)
                continue
            after = self.table.tokens[chunk.row, chunk.start + 1 : chunk.start + 1 + stop - start]
            top = chunk.sequence.generation.sampling.logprobs or 0
            (tokens_M,) = put(self.device, after.astype(np.int64))
            found.append(likely(logits_LV[start:stop], tokens_M, top))
            start = stop
        return found


def _wanted(plan: Plan, starts: NDArray[np.int32]) -> Rows:
    """Of the step's rows: those that are sampled, once for each choice; then those of prompts."""
    count = len(plan.decodes)
    wanted = [np.arange(count)]
    for place, chunk in enumerate(plan.chunks, count):
        if chunk.last:
            wanted.append(np.repeat(starts[place + 1] - 1, len(chunk.group)))
    for place, chunk in enumerate(plan.chunks, count):
        wanted.append(starts[place] + np.arange(chunk.prompt_rows))
    return np.concatenate(wanted).astype(np.int64)


def _fetch(tensor: Tensor) -> Tensor:
    """Its values on the host, once the device has got there."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _fetch_likely(found: Likely | None) -> Likely | None:
    return None if found is None else Likely(*map(_fetch, found))


def _rows(found: Likely | None) -> LikelyRows | None:
    return None if found is None else LikelyRows(*(tensor.tolist() for tensor in found))
