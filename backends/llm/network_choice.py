"""Which network runs a decoder here: native or graphed where it can be, torch everywhere else.

Owns the choice alone. Invariant: it depends on the machine and on the decoder's shape, never on its
values, so all versions of a model that follow each other share one kind of cache.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from backends.llm.attention import kernels_for
from backends.llm.attention.plain import PlainKernels
from backends.llm.graphs import GraphedNetwork
from backends.llm.native import Library, Unavailable, load
from backends.llm.network import DecoderNetwork
from backends.llm.network_native import GROUP, NativeNetwork, fits_page, misfit
from backends.models.config import DecoderConfig

# All of them load from checkpoints, too.
ChosenNetwork = NativeNetwork | GraphedNetwork | DecoderNetwork


def choose_network(
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    page_size: int,
    int8: bool = False,
    rank: int = 0,
    world: int = 1,
    group: dist.ProcessGroup | None = None,
) -> ChosenNetwork:
    """For one rank of `world`. `int8`: weights in a byte each, sums in `dtype`. One that is slower
    than need be has the reason in `slow`."""
    where = torch.device(device)
    slow = ""
    if where.type == "cpu":
        try:
            return NativeNetwork(config, _native(config, dtype, page_size, world), int8=int8)
        except Unavailable as error:
            slow = f"torch computes, several times slower than the native step: {error}"
    network = DecoderNetwork(
        config, dtype=dtype, device=where, int8=int8, rank=rank, world=world, group=group
    )
    network.slow = slow
    # Plain kernels look at the step's tables on the host, which no graph can.
    if where.type == "cuda":
        if kernels_for(where) is not PlainKernels:
            return GraphedNetwork(network)
        network.slow = "torch computes without Triton and graphs, many times slower: install triton"
    return network


def _native(config: DecoderConfig, dtype: torch.dtype, page_size: int, world: int) -> Library:
    """Raises Unavailable."""
    if dtype != torch.bfloat16:
        raise Unavailable(
            f'it computes in bfloat16, not {dtype}: set `weights` to "bf16" or "int8"'
        )
    if not fits_page(page_size):
        raise Unavailable(f"page_size {page_size} is not a multiple of {GROUP}")
    if world > 1:
        raise Unavailable("it runs in one process: `tensor_parallel` is for GPUs")
    if (reason := misfit(config)) is not None:
        raise Unavailable(reason)
    return load()
