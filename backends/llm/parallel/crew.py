"""Rank 0's side: the processes of the other ranks, the orders to them, and networks over all.

Owns those processes. Each rank loads its own slices, beside the steps that run. Invariant: all
ranks run the same steps in the same order; when that can no longer be so, every later step raises
NotReady, and only new processes can serve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.errors import ModelFailed, NotReady
from backends.llm.attention import KVCache
from backends.llm.network import Network
from backends.llm.parallel.orders import (
    HOST,
    Cache,
    Copy,
    Drop,
    Load,
    Loaded,
    Make,
    Order,
    join,
    pack,
    sizes,
)
from backends.llm.parallel.rank import follow
from backends.llm.step import Step

# How often a load looks whether it is still wanted.
_LOOK_S = 0.05


class Crew:
    """Ranks 1 to world - 1; this process is rank 0, and has no other process group."""

    def __init__(
        self, world: int, make: Make, *, backend: str = "gloo", threads: int | None = None
    ) -> None:
        """Waits until every rank is there. `threads`: torch's, in each of them. Raises ModelFailed
        where one does not come."""
        self._make, self._world = make, world
        self._ordering, self._loading = threading.Lock(), threading.Lock()
        self._networks, self._lost = 0, ""
        store = dist.TCPStore(  # type: ignore[attr-defined]
            HOST, 0, world, True, wait_for_workers=False
        )
        context = get_context("spawn")  # none of our threads and devices goes along
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(1, world):
            ours, theirs = context.Pipe()
            arguments = (rank, world, store.port, backend, threads, make, theirs)
            name = f"rank {rank}"
            process = context.Process(target=follow, args=arguments, name=name, daemon=True)
            process.start()
            theirs.close()  # so that its end is the pipe's end
            self._pipes.append(ours)
            self.processes.append(process)
        self._group: dist.ProcessGroup | None = None
        try:
            self._group = join(store, 0, world, backend)
        except Exception as error:
            self.close(0.0)
            raise ModelFailed(f"not all of {world} ranks came: {error}") from error

    @property
    def lost(self) -> str:
        """Why it can serve no more; empty while it can. Looks whether all are alive."""
        for rank, process in enumerate(self.processes, 1):
            if not self._lost and not process.is_alive():
                self._lost = f"rank {rank} has ended"
        return self._lost

    def load(self, request: Any, cancelled: Callable[[], bool] = lambda: False) -> Network:
        """Every rank makes its part. From any thread, beside the steps that run. Raises
        ModelFailed with what went wrong on another rank, and what `make` raises here."""
        with self._loading:
            self._networks += 1
            network = self._networks
            self.order(Load(network, request))
            try:
                assert self._group is not None
                part = self._make(request, 0, self._world, self._group)
            except BaseException:
                self.drop(network)
                raise
            problems = self._outcomes(network, cancelled)
            if problems:
                self.drop(network)
                raise ModelFailed("; ".join(problems))
            return _Whole(self, network, part)

    def order(self, order: Order, tensor: Tensor | None = None) -> None:
        """Tell all ranks, and broadcast what goes with it. Raises NotReady where one is lost."""
        with self._ordering:
            if self._lost:
                raise NotReady(self._lost)
            try:
                for pipe in self._pipes:
                    pipe.send(order)
            except OSError as error:
                self._lose(error)
                raise NotReady(self._lost) from error
        if tensor is not None:
            dist.broadcast(tensor, 0, group=self._group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What raises in it may leave the others in the middle of a step."""
        try:
            yield
        except BaseException as error:
            self._lose(error)
            raise

    def drop(self, network: int) -> None:
        with suppress(NotReady):
            self.order(Drop(network))

    def close(self, seconds: float = 10.0) -> None:
        """The other ranks end, by force where they take longer."""
        self._lost = self._lost or "the ranks were closed"
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join(seconds)
        if self._group is not None:
            self._group = None
            dist.destroy_process_group()

    def _lose(self, error: BaseException) -> None:
        why = f"tensor-parallel ranks are out of step: {type(error).__name__}: {error}"
        self._lost = self._lost or why

    def _outcomes(self, network: int, cancelled: Callable[[], bool]) -> list[str]:
        """What went wrong with that load on other ranks."""
        problems = []
        for rank, pipe in enumerate(self._pipes, 1):
            answer: Loaded | None = None
            # One with another number is of a load that was given up.
            while answer is None or answer.network != network:
                if cancelled():
                    return ["another version is wanted"]
                try:
                    answer = pipe.recv() if pipe.poll(_LOOK_S) else None
                except (EOFError, OSError) as error:
                    self._lose(error)
                    return [f"rank {rank} has ended"]
            if answer.error:
                problems.append(f"rank {rank}: {answer.error}")
        return problems


class _Whole:
    """A network over all ranks, as the engine sees it: a `Network` like any other."""

    def __init__(self, crew: Crew, number: int, part: Network) -> None:
        self._crew, self._number, self._part = crew, number, part
        self.layers, self.kv_heads = part.layers, part.kv_heads
        self.head_dim, self.vocabulary = part.head_dim, part.vocabulary
        self.max_context = part.max_context
        self.dtype, self.device = part.dtype, part.device
        self.slow = getattr(part, "slow", "")

    def page_bytes(self, page_size: int) -> int:
        return self._part.page_bytes(page_size)

    def new_cache(self, pages: int, page_size: int) -> KVCache:
        self._crew.order(Cache(self._number, pages, page_size))
        return self._part.new_cache(pages, page_size)

    def copy_pages(self, cache: KVCache, sources_M: Tensor, targets_M: Tensor) -> None:
        with self._crew.together():
            order = Copy(self._number, len(sources_M))
            self._crew.order(order, torch.stack([sources_M, targets_M]))
            self._part.copy_pages(cache, sources_M, targets_M)

    def __call__(self, step: Step, cache: KVCache) -> Tensor:
        with self._crew.together():
            self._crew.order(sizes(self._number, step), pack(step))
            return self._part(step, cache)

    def load_(self, state: Mapping[str, Tensor]) -> None:
        raise ModelFailed("a network over several ranks is loaded by its crew, rank by rank")

    def close(self) -> None:
        self._crew.drop(self._number)
        self._part.close()
