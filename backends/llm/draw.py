"""From logits to a token at random: temperature, top-k, top-p, min-p, then one draw for each row.

Pure tensors in, tensors out, any device, no synchronisation on a GPU. A draw inverts the cumulative
distribution at one uniform number rather than racing a noise for each of the vocabulary: it costs
two passes over the weights and no noise. Invariant: a token of probability 0 is never drawn.

Shape suffixes: B rows, V vocabulary, K candidates, N blocks of the vocabulary, W tokens of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Sums go over blocks first: fewer cumulative sums, and less rounding in them.
_BLOCK = 128
# Candidates that are looked at first for a threshold. Most distributions have their top 95 % there.
_CANDIDATES = 128
# Weights are at most 1: the first 16 bits of a float32 are at most 0x3f80, 7 of them its mantissa.
_BIN_BITS, _BINS = 16, 0x3F80 + 1


def weights(logits_BV: Tensor, temperature_B: Tensor) -> Tensor:
    """Unnormalised probabilities; the likeliest has 1."""
    below_BV = logits_BV - logits_BV.amax(-1, keepdim=True)
    return below_BV.div_(temperature_B[:, None]).exp_()


def truncate(
    weights_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, min_p_B: Tensor, most: int
) -> Tensor:
    """Zero where top-k, top-p of what that leaves, and min-p cut off. Equal weights stay or go
    together. top_k 0, top_p 1 and min_p 0 cut nothing. `most` is the greatest top_k."""
    threshold_B = torch.maximum(_top(weights_BV, top_k_B, top_p_B, most), min_p_B)
    return weights_BV.masked_fill_(weights_BV < threshold_B[:, None], 0.0)


def _top(weights_BV: Tensor, top_k_B: Tensor, top_p_B: Tensor, most: int) -> Tensor:
    """The least weight that top-k and top-p keep."""
    vocabulary = weights_BV.shape[1]
    limit_B = torch.where(top_k_B > 0, top_k_B, vocabulary).clamp_(max=vocabulary)
    total_B = weights_BV.sum(-1, dtype=torch.float64)
    if weights_BV.is_cuda:
        # Looking whether fewer do would wait for the device.
        return _least(weights_BV, limit_B, top_p_B, total_B, vocabulary)[0]
    count = min(max(_CANDIDATES, most), vocabulary)
    least_B, beyond_B = _least(weights_BV, limit_B, top_p_B, total_B, count)
    rows_M = beyond_B.nonzero()[:, 0]
    if len(rows_M):
        least_B[rows_M] = _nucleus(weights_BV[rows_M], (total_B * top_p_B)[rows_M])
    return least_B


def _least(
    weights_BV: Tensor, limit_B: Tensor, top_p_B: Tensor, total_B: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The same from the `count` greatest, and whether it may lie beyond them."""
    best_BK = weights_BV.topk(count).values
    sums_BK = best_BK.cumsum(-1, dtype=torch.float64)
    last_B = (limit_B - 1).clamp(max=count - 1)
    inside_B = sums_BK.gather(1, last_B[:, None])[:, 0]
    cut_B = top_p_B < 1
    # Kept: what has less than top_p of the mass before it; the likeliest always.
    need_B = torch.where(limit_B <= count, inside_B, total_B) * top_p_B
    kept_B = ((sums_BK - best_BK) < need_B[:, None]).sum(-1).clamp_(min=1)
    index_B = torch.where(cut_B, torch.minimum(kept_B - 1, last_B), last_B)
    least_B = best_BK.gather(1, index_B[:, None])[:, 0]
    beyond_B = cut_B & (kept_B == count) & (limit_B > count)
    return torch.where(cut_B | (limit_B <= count), least_B, 0.0), beyond_B


def _nucleus(weights_MV: Tensor, need_M: Tensor) -> Tensor:
    """The least weight of the greatest that together have the mass `need`, where these are many:
    no sorting but of one bin of a histogram. Positive floats are in the order of their bits."""
    rows = len(weights_MV)
    bin_MV = weights_MV.view(torch.int32) >> _BIN_BITS
    index_MV = bin_MV + torch.arange(rows, dtype=torch.int32)[:, None] * _BINS
    mass = torch.bincount(index_MV.flatten(), weights_MV.flatten().double(), rows * _BINS)
    sums_MN = mass.view(rows, _BINS).flip(1).cumsum(1)
    need_M = torch.minimum(need_M, sums_MN[:, -1])
    found_M = (sums_MN < need_M[:, None]).sum(1).tolist()
    least_M = torch.empty(rows, dtype=weights_MV.dtype)
    for row, place in enumerate(found_M):
        inside = weights_MV[row][bin_MV[row] == _BINS - 1 - place].sort(descending=True).values
        above = sums_MN[row, place - 1] if place else 0.0
        before = above + inside.cumsum(0, dtype=torch.float64) - inside
        least_M[row] = inside[int((before < need_M[row]).sum().clamp(min=1)) - 1]
    return least_M


def draw(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token [B] at which the cumulative weight passes `uniform` (float64) of the total."""
    rows, vocabulary = weights_BV.shape
    if vocabulary % _BLOCK:
        weights_BV = F.pad(weights_BV, (0, _BLOCK - vocabulary % _BLOCK))
    weights_BNW = weights_BV.view(rows, -1, _BLOCK)
    sums_BN = weights_BNW.sum(-1, dtype=torch.float64).cumsum(-1)
    block_B, left_B = _pass(sums_BN, uniform_B * sums_BN[:, -1])
    block_BW = weights_BNW[torch.arange(rows, device=weights_BV.device), block_B]
    token_B, _ = _pass(block_BW.cumsum(-1, dtype=torch.float64), left_B)
    return block_B * _BLOCK + token_B


def _pass(sums_BN: Tensor, at_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sums first pass `at`, and what of it is left there."""
    last_B = sums_BN[:, -1]
    # Rounding may have brought it to the end, beyond which nothing lies.
    at_B = torch.minimum(at_B, torch.nextafter(last_B, torch.zeros_like(last_B)))
    index_B = (sums_BN <= at_B[:, None]).sum(-1).clamp_(max=sums_BN.shape[1] - 1)
    before_B = sums_BN.gather(1, (index_B - 1).clamp(min=0)[:, None])[:, 0]
    return index_B, at_B - torch.where(index_B > 0, before_B, 0.0)
