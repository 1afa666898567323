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
from backends.llm.native import load
from backends.llm.network import DecoderNetwork
from backends.llm.network_native import NativeNetwork, fits_page, misfit
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
    """For one rank of `world`. `int8`: weights in a byte each, sums in `dtype`."""
    where = torch.device(device)
    able = where.type == "cpu" and dtype == torch.bfloat16 and fits_page(page_size) and world == 1
    if able and misfit(config) is None and (library := load()) is not None:
        return NativeNetwork(config, library, int8=int8)
    network = DecoderNetwork(
        config, dtype=dtype, device=where, int8=int8, rank=rank, world=world, group=group
    )
    # Plain kernels look at the step's tables on the host, which no graph can.
    if where.type == "cuda" and kernels_for(where) is not PlainKernels:
        return GraphedNetwork(network)
    return network
