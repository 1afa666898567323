"""The life of a rank that follows: orders in the order they come, until rank 0 is gone.

Owns its part of each network, its part of the cache, and the threads that load beside the steps.
Invariant: it computes nothing that it was not told to; an error in a step ends the process, which
the others notice.
"""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import Tensor

from backends.claim import failure, reason
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
    Run,
    join,
    unpack,
)


def follow(
    rank: int,
    world: int,
    port: int,
    backend: str,
    threads: int | None,
    make: Make,
    orders: Connection,
) -> None:
    """A process's main function."""
    # An operator's Ctrl-C goes to all of them; what is served still drains.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads is not None:
        torch.set_num_threads(threads)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    store = dist.TCPStore(HOST, port, world, False)  # type: ignore[attr-defined]
    group = join(store, rank, world, backend)
    follower = _Rank(rank, world, make, group, orders)
    with suppress(EOFError, ConnectionError):
        while True:
            follower.obey(orders.recv())


class _Rank:
    def __init__(
        self, rank: int, world: int, make: Make, group: dist.ProcessGroup, orders: Connection
    ) -> None:
        self._rank, self._world, self._make = rank, world, make
        self._group, self._orders = group, orders
        self._networks: dict[int, Network] = {}
        self._loading: dict[int, threading.Event] = {}  # set: it was given up
        self._cache: KVCache | None = None
        self._lock = threading.Lock()  # loads end on threads of their own

    def obey(self, order: Order) -> None:
        match order:
            case Load():
                given_up = self._loading[order.network] = threading.Event()
                # A daemon: a load that hangs must not outlive the replica.
                threading.Thread(target=self._load, args=(order, given_up), daemon=True).start()
            case Drop():
                with self._lock:
                    if order.network in self._loading:
                        self._loading[order.network].set()
                    network = self._networks.pop(order.network, None)
                if network is not None:
                    network.close()
            case Cache():
                network = self._networks[order.network]
                self._cache = network.new_cache(order.pages, order.page_size)
            case Copy():
                network = self._networks[order.network]
                assert self._cache is not None
                sources_M, targets_M = self._receive(2 * order.pages, network).view(2, -1)
                network.copy_pages(self._cache, sources_M, targets_M)
            case Run():
                network = self._networks[order.network]
                assert self._cache is not None
                network(unpack(self._receive(order.packed, network), order), self._cache)

    def _receive(self, size: int, network: Network) -> Tensor:
        tensor = torch.empty(size, dtype=torch.int64, device=network.device)
        dist.broadcast(tensor, 0, group=self._group)
        return tensor

    def _load(self, order: Load, given_up: threading.Event) -> None:
        answer = self._make_part(order, given_up)
        with self._lock, suppress(OSError):  # rank 0 has ended meanwhile
            self._orders.send(answer)

    def _make_part(self, order: Load, given_up: threading.Event) -> Loaded:
        """When it returns, there is the part or nothing: whoever waits for the answer counts memory
        by it."""
        network: Network | None = None
        answer = Loaded(order.network, "")
        try:
            network = self._make(
                order.request, self._rank, self._world, self._group, given_up.is_set
            )
        except BaseException as raised:  # rank 0 is told, and says so where it was asked
            answer = Loaded(order.network, reason(raised), failure(raised))
        with self._lock:
            del self._loading[order.network]
            if network is not None and not given_up.is_set():
                self._networks[order.network] = network
                network = None
        if network is not None:
            network.close()
        return answer
