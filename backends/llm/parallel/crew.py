"""Rank 0's side: the processes of the other ranks, the orders to them, and networks over all.

Owns those processes. Each rank loads its own slices, beside the steps that run, and one load at a
time. Invariant: all ranks run the same steps in the same order; when that can no longer be so,
every later step raises NotReady, and only new processes can serve.
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

from backends.checkpoint import Cancelled
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
from backends.reload_terms import Failure, LoadFailed

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
        # By rank: loads that it has not answered yet.
        self._under_way = dict.fromkeys(range(1, world), 0)
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
        """Every rank makes its part; one that fails or is cancelled stops all. From any thread,
        beside the steps that run. Raises LoadFailed with what went wrong on another rank, Cancelled
        and what `make` raises here."""
        with self._loading:
            self._wait(cancelled)
            self._networks += 1
            network = self._networks
            self.order(Load(network, request))
            for rank in self._under_way:
                self._under_way[rank] += 1
            part: Network | None = None
            try:
                assert self._group is not None
                part = self._make(request, 0, self._world, self._group, cancelled)
                self._vote(cancelled)
            except BaseException:
                self.drop(network)
                if part is not None:
                    part.close()
                raise
            return _Whole(self, network, part)

    def wait(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Until no load that was given up takes memory on any rank. Raises Cancelled."""
        with self._loading:
            self._wait(cancelled)

    def _wait(self, cancelled: Callable[[], bool]) -> None:
        for rank in self._under_way:
            while self._under_way[rank] and not self._lost:
                self._answer(rank, cancelled)

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

    def _vote(self, cancelled: Callable[[], bool]) -> None:
        """Returns if all other ranks have their parts. Raises LoadFailed with what went wrong
        there, and Cancelled."""
        votes = {rank: self._answer(rank, cancelled) for rank in self._under_way}
        noes = {rank: vote for rank, vote in votes.items() if vote.failure is not None}
        if not noes:
            return
        kinds = {vote.failure for vote in noes.values()}
        # Wrong bytes are wrong for everybody, whatever else is amiss elsewhere.
        worst = Failure.CORRUPT if Failure.CORRUPT in kinds else next(iter(noes.values())).failure
        assert worst is not None
        text = "; ".join(f"rank {rank}: {vote.error}" for rank, vote in noes.items())
        raise LoadFailed(worst, text)

    def _answer(self, rank: int, cancelled: Callable[[], bool]) -> Loaded:
        """To the oldest load that this rank has not answered: they are answered one by one."""
        pipe = self._pipes[rank - 1]
        try:
            while not pipe.poll(_LOOK_S):
                if cancelled():
                    raise Cancelled("another version is wanted")
            answer: Loaded = pipe.recv()
        except (EOFError, OSError) as error:
            self._lose(error)
            raise ModelFailed(f"rank {rank} has ended") from error
        self._under_way[rank] -= 1
        return answer


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
