"""The least that can drive a network: sequences with pages of their own, chunks of any length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from backends.llm.attention import KVCache
from backends.llm.network import Network
from backends.llm.step import Step


class Pager:
    """Pages are dealt in a scrambled order, as after hours of service."""

    def __init__(self, network: Network, pages: int = 64, page_size: int = 4) -> None:
        self.network, self.page_size = network, page_size
        self.cache: KVCache = network.new_cache(pages, page_size)
        # What nobody reads must not matter.
        for tensor in self.cache:
            tensor.fill_(torch.nan)
        order = torch.randperm(pages - 1, generator=torch.Generator().manual_seed(1)) + 1
        self._free: list[int] = order.tolist()
        self._pages: dict[str, list[int]] = {}
        self._lengths: dict[str, int] = {}

    def step(self, chunks: Mapping[str, Sequence[int]]) -> Step:
        """`chunks`: the next tokens of each sequence. Logits of every token are asked for."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, contexts = [0], []
        for name, chunk in chunks.items():
            pages, length = self._pages.setdefault(name, []), self._lengths.get(name, 0)
            while len(pages) * self.page_size < length + len(chunk):
                pages.append(self._free.pop())
            for position in range(length, length + len(chunk)):
                slots.append(pages[position // self.page_size] * self.page_size)
                slots[-1] += position % self.page_size
                positions.append(position)
            tokens += chunk
            starts.append(len(tokens))
            contexts.append(length + len(chunk))
            self._lengths[name] = length + len(chunk)
        longest = max(len(self._pages[name]) for name in chunks)
        table = [self._pages[name] + [0] * (longest - len(self._pages[name])) for name in chunks]
        device = self.network.device

        def made(values: object, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Step(
            made(tokens, torch.int64),
            made(positions, torch.int64),
            made(slots, torch.int64),
            made(starts, torch.int32),
            made(contexts, torch.int32),
            made(table, torch.int32),
            torch.arange(len(tokens), device=device),
            max_query=max(len(chunk) for chunk in chunks.values()),
            max_context=max(contexts),
        )

    def run(self, chunks: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """[tokens of the chunk, V] logits of each sequence."""
        step = self.step(chunks)
        logits = self.network(step, self.cache)
        assert logits.dtype == torch.float32
        ends = step.starts_S1.tolist()
        return {
            name: logits[first:end]
            for name, first, end in zip(chunks, ends[:-1], ends[1:], strict=True)
        }


def mixed(network: Network, texts: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Logits of every token of each text, computed in chunks that mix prefills and decodes."""
    pager, at = Pager(network), dict.fromkeys(texts, 0)
    found: dict[str, list[Tensor]] = {name: [] for name in texts}
    sizes, turn = (5, 1, 1, 3, 1), 0
    while left := [name for name in texts if at[name] < len(texts[name])]:
        # One begins later than the other, and each turn has another mix of chunk lengths.
        chunks = {}
        for place, name in enumerate(left if turn else left[:1]):
            size = sizes[(turn + 2 * place) % len(sizes)]
            chunks[name] = list(texts[name][at[name] : at[name] + size])
            at[name] += len(chunks[name])
        for name, logits in pager.run(chunks).items():
            found[name].append(logits)
        turn += 1
    return {name: torch.cat(parts) for name, parts in found.items()}
