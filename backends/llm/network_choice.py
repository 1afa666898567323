"""Which network runs a decoder here: the native one where it can, torch everywhere else.

Owns the choice alone. Invariant: it depends on the machine and on the decoder's shape, never on its
values, so all versions of a model that follow each other share one kind of cache.
"""

from __future__ import annotations

import torch

from backends.llm.native import load
from backends.llm.network import DecoderNetwork
from backends.llm.network_native import NativeNetwork, fits_page, misfit
from backends.models.config import DecoderConfig


def choose_network(
    config: DecoderConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    page_size: int,
    int8: bool = False,
) -> NativeNetwork | DecoderNetwork:
    """For one rank that has the whole model. `int8`: weights in a byte each, sums in `dtype`."""
    where = torch.device(device)
    able = where.type == "cpu" and dtype == torch.bfloat16 and fits_page(page_size)
    if able and misfit(config) is None and (library := load()) is not None:
        return NativeNetwork(config, library, int8=int8)
    return DecoderNetwork(config, dtype=dtype, device=where, int8=int8)
