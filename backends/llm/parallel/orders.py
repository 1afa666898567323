"""What rank 0 tells the others, and how ranks find each other.

An order goes through a pipe: what to do, and sizes. The tensors that belong to it follow by one
broadcast from device to device, so that sampled tokens never wait for a host.

Shape suffixes as in `step`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from backends.llm.network import Network
from backends.llm.step import Step
from backends.reload_terms import Failure

# (request, rank, world, group, cancelled) → the rank's part of a network. A module's function: it
# is sent to new processes by its name.
Make = Callable[[Any, int, int, "dist.ProcessGroup", Callable[[], bool]], Network]

HOST = "127.0.0.1"
# A rank that does not come along for so long is lost.
_STEP_S, _START_S = 60.0, 120.0


class Load(NamedTuple):
    """Answered with `Loaded`, whenever it has ended."""

    network: int
    request: Any


class Loaded(NamedTuple):
    """`failure`: what follows of the error, where there is one. What was read is gone then."""

    network: int
    error: str
    failure: Failure | None = None


class Drop(NamedTuple):
    """Stops its load, where that is still under way."""

    network: int


class Cache(NamedTuple):
    network: int
    pages: int
    page_size: int


class Copy(NamedTuple):
    """[2, pages]: from, to."""

    network: int
    pages: int


class Run(NamedTuple):
    """Sizes of a step, which is broadcast packed."""

    network: int
    tokens: int
    sequences: int
    pages: int
    logits: int
    max_query: int
    max_context: int

    @property
    def packed(self) -> int:
        return 3 * self.tokens + (2 + self.pages) * self.sequences + 1 + self.logits


Order = Load | Drop | Cache | Copy | Run


def sizes(network: int, step: Step) -> Run:
    sequences, pages = step.pages_SP.shape
    return Run(
        network,
        len(step.tokens_T),
        sequences,
        pages,
        len(step.logits_L),
        step.max_query,
        step.max_context,
    )


def pack(step: Step) -> Tensor:
    parts = (
        step.tokens_T,
        step.positions_T,
        step.slots_T,
        step.starts_S1,
        step.contexts_S,
        step.logits_L,
        step.pages_SP.flatten(),
    )
    return torch.cat([part.to(torch.int64) for part in parts])


def unpack(packed: Tensor, of: Run) -> Step:
    t, s = of.tokens, of.sequences
    tokens_T, positions_T, slots_T, starts_S1, contexts_S, logits_L, pages = torch.split(
        packed, [t, t, t, s + 1, s, of.logits, s * of.pages]
    )
    return Step(
        tokens_T=tokens_T,
        positions_T=positions_T,
        slots_T=slots_T,
        starts_S1=starts_S1.int(),
        contexts_S=contexts_S.int(),
        pages_SP=pages.int().view(s, -1),
        logits_L=logits_L,
        max_query=of.max_query,
        max_context=of.max_context,
    )


def join(store: Any, rank: int, world: int, backend: str) -> dist.ProcessGroup:
    """Waits for all ranks. The group is one of its own, for steps: they may not take as long."""
    start, step = timedelta(seconds=_START_S), timedelta(seconds=_STEP_S)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=start)
    group = dist.new_group(timeout=step)
    assert isinstance(group, dist.ProcessGroup)
    return group
