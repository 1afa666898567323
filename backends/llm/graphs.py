"""Steps of decodes from CUDA graphs: a step's kernels are launched as one.

Owns the static inputs, the sizes that are captured, and the padding to the next size up. A prefill
runs as it is. Invariant: what a graph reads and writes stays where it was at capture: inputs are
copied into the static ones, weights change in place, and another cache gets graphs of its own.

Shape suffixes: S sequences, P pages of the longest one, L rows whose logits are wanted,
V vocabulary.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from backends.checkpoint import Manifest
from backends.checkpoint.reading import Pace
from backends.llm.attention import KVCache
from backends.llm.network import DecoderNetwork
from backends.llm.step import Step

# Small ones exactly, then by eights: a step of n decodes costs at most that of seven more.
SIZES = (1, 2, 4, *range(8, 257, 8))

Replay = Callable[[], Tensor]


class Recorder(Protocol):
    """Runs `run` and makes of what it launched something that can be launched again."""

    def __call__(self, run: Replay) -> Replay: ...


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._pool, self._device = torch.cuda.graph_pool_handle(), device

    def __call__(self, run: Replay) -> Replay:
        with torch.cuda.device(self._device):
            return self._recorded(run)

    def _recorded(self, run: Replay) -> Replay:
        # Once outside of a capture: kernels are compiled, libraries take their workspaces.
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be loading the next version meanwhile: that is not our capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_LV = run()

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return logits_LV

        return replay


class StaticStep:
    """Inputs at fixed addresses for up to `most` sequences. Beyond those of the step are dummies:
    one token each, in the reserved page, which nobody reads."""

    def __init__(self, most: int, pages: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._step = Step(
            tokens_T=zeros(most),
            positions_T=zeros(most),
            slots_T=zeros(most),
            starts_S1=torch.arange(most + 1, dtype=torch.int32, device=device),
            contexts_S=zeros(most, dtype=torch.int32) + 1,
            pages_SP=zeros(most, pages, dtype=torch.int32),
            logits_L=zeros(most),
            max_query=1,
            max_context=0,
        )

    def take(self, step: Step, size: int) -> None:
        """Copies the step in, and makes dummies of the rows up to `size`."""
        own, count = self._step, len(step.contexts_S)
        for ours, theirs in (
            (own.tokens_T, step.tokens_T),
            (own.positions_T, step.positions_T),
            (own.slots_T, step.slots_T),
            (own.logits_L, step.logits_L),
        ):
            ours[: len(theirs)].copy_(theirs, non_blocking=True)
            ours[len(theirs) : size].zero_()
        own.contexts_S[:count].copy_(step.contexts_S, non_blocking=True)
        own.contexts_S[count:size].fill_(1)
        own.pages_SP[:count, : step.pages_SP.shape[1]].copy_(step.pages_SP, non_blocking=True)
        own.pages_SP[count:size, :1].zero_()

    def first(self, size: int) -> Step:
        """Views of its first `size` rows."""
        own = self._step
        return Step(
            own.tokens_T[:size],
            own.positions_T[:size],
            own.slots_T[:size],
            own.starts_S1[: size + 1],
            own.contexts_S[:size],
            own.pages_SP[:size],
            own.logits_L[:size],
            own.max_query,
            own.max_context,
        )


class GraphedNetwork:
    """A `Network` around another, on a device whose launches can be recorded."""

    def __init__(
        self,
        network: DecoderNetwork,
        *,
        recorder: Callable[[torch.device], Recorder] = CudaRecorder,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        self._network, self._sizes, self._recorder = network, sorted(sizes), recorder
        self._graphs: dict[int, Replay] = {}
        self._cache: KVCache | None = None
        self._static: StaticStep | None = None
        self._logits_LV: Tensor | None = None
        self.config, self.dtype, self.device = network.config, network.dtype, network.device
        self.layers, self.vocabulary = network.layers, network.vocabulary
        self.kv_heads, self.head_dim = network.kv_heads, network.head_dim
        self.max_context = network.max_context

    # ------------------------------------------------------------------------------------- cache

    def page_bytes(self, page_size: int) -> int:
        return self._network.page_bytes(page_size)

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        """Also records all sizes for it, which takes a while; other caches, and this one with
        another network, are recorded size by size when first met."""
        cache = self._network.new_cache(pages, page_size)
        self._begin(cache)
        # The largest first: the smaller ones find room in the memory that it took.
        for size in reversed(self._sizes):
            self._replay(size)
        return cache

    def copy_pages(self, cache: KVCache, sources_M: Tensor, targets_M: Tensor) -> None:
        self._network.copy_pages(cache, sources_M, targets_M)

    # ----------------------------------------------------------------------------------- running

    @torch.inference_mode()
    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        """As `Network`. The logits are overwritten by the next step."""
        count = len(step.contexts_S)
        place = bisect_left(self._sizes, max(count, len(step.logits_L)))
        if step.max_query > 1 or len(step.tokens_T) != count or place == len(self._sizes):
            return self._network(step, cache)
        if self._cache is None or self._cache.keys_NPKZD is not cache.keys_NPKZD:
            self._begin(cache)
        size = self._sizes[place]
        assert self._static is not None
        self._static.take(step, size)
        return self._replay(size)()[: len(step.logits_L)]

    def _begin(self, cache: KVCache) -> None:
        self._graphs.clear()
        self._record = self._recorder(self.device)
        self._cache = cache
        pages = -(-self.max_context // cache.page_size)
        most = self._sizes[-1]
        self._static = StaticStep(most, pages, self.device)
        # One for all sizes: each graph would keep logits of its own, gigabytes together.
        self._logits_LV = torch.empty(most, self.vocabulary, device=self.device)

    @torch.inference_mode()
    def _replay(self, size: int) -> Replay:
        found = self._graphs.get(size)
        if found is None:
            network, cache, static = self._network, self._cache, self._static
            assert cache is not None and static is not None and self._logits_LV is not None
            step, into_LV = static.first(size), self._logits_LV[:size]
            found = self._graphs[size] = self._record(lambda: network(step, cache, into_LV))
        return found

    # ----------------------------------------------------------------------------------- loading

    def load_(self, state: Mapping[str, Tensor]) -> None:
        self._network.load_(state)

    def load_checkpoint_(self, folder: Path, manifest: Manifest, pace: Pace | None = None) -> None:
        self._network.load_checkpoint_(folder, manifest, pace)

    def exchange_(self, twin: DecoderNetwork) -> None:
        """The graphs stay: no address changes."""
        self._network.exchange_(twin)

    def close(self) -> None:
        """Graphs go before the communicators that they use."""
        self._graphs.clear()
        self._cache = self._static = self._logits_LV = None
        self._network.close()
