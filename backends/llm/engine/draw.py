"""From logits to a token at random: temperature, top-k, top-p, min-p, then one draw for each row.

Pure tensors in, tensors out, any device. A draw inverts the cumulative
distribution at one uniform number rather than racing a noise for each of the vocabulary: it costs
one pass over the probabilities and no noise. Invariant: a token of probability 0 is never drawn,
and a row's token depends on that row alone.

Shape suffixes: B rows, M some of them, V vocabulary, K candidates, likeliest first, N bins or
blocks, W tokens of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Sums go over blocks first: fewer cumulative sums, and less rounding in them.
_BLOCK = 128
# Most distributions have their likeliest 95 % among so many. On a GPU, to look whether one has not
# is to wait for it, and more candidates cost little.
_CANDIDATES, _GPU_CANDIDATES = 128, 1024
# Probabilities are at most 1: the first 16 bits of a float32 are at most 0x3f80, of which 7 are its
# mantissa's.
_BIN_BITS, _BINS = 16, 0x3F80 + 1


class Cuts(NamedTuple):
    """`top_k` 0, `top_p` 1 and `min_p` 0 cut nothing. top_p is of the mass that top_k leaves, min_p
    a part of the greatest probability. The host knows the greatest top_k, `most`, and whether every
    row has one, `ranked`."""

    top_k_B: Tensor  # int64
    top_p_B: Tensor  # float64
    min_p_B: Tensor  # float32
    most: int
    ranked: bool


def probabilities(logits_BV: Tensor, temperature_B: Tensor) -> Tensor:
    return torch.softmax(logits_BV / temperature_B[:, None], -1)


def draw_cut(probabilities_BV: Tensor, cuts: Cuts, uniform_B: Tensor) -> Tensor:
    """The token [B] of each row, at its place (float64, in [0, 1)) among what the cuts leave. Waits
    for a GPU only where top_p may reach beyond the candidates."""
    vocabulary, on_gpu = probabilities_BV.shape[1], probabilities_BV.is_cuda
    count = min(max(_GPU_CANDIDATES if on_gpu else _CANDIDATES, cuts.most), vocabulary)
    tokens_B, least_B, beyond_B = _draw_likeliest(probabilities_BV, cuts, uniform_B, count)
    if cuts.ranked or count == vocabulary or not bool(beyond_B.any()):
        return tokens_B
    rows_M = beyond_B.nonzero()[:, 0]
    wide_MV, uniform_M = probabilities_BV[rows_M], uniform_B[rows_M]
    top_k_M, top_p_M, min_p_M = (cut_B[rows_M] for cut_B in cuts[:3])
    if on_gpu:
        own = Cuts(top_k_M, top_p_M, min_p_M, cuts.most, cuts.ranked)
        tokens_B[rows_M], _, _ = _draw_likeliest(wide_MV, own, uniform_M, vocabulary)
        return tokens_B
    least_M, narrow_M = least_B[rows_M], (top_p_M < 1).nonzero()[:, 0]
    nucleus_M = _nucleus(wide_MV[narrow_M], top_p_M[narrow_M])
    least_M[narrow_M] = torch.maximum(least_M[narrow_M], nucleus_M)
    tokens_B[rows_M] = draw(wide_MV.masked_fill_(wide_MV < least_M[:, None], 0.0), uniform_M)
    return tokens_B


def _draw_likeliest(
    probabilities_BV: Tensor, cuts: Cuts, uniform_B: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens from among the `count` likeliest, in their order; and what `_least` says."""
    best_BK, ids_BK = probabilities_BV.topk(count)
    least_B, beyond_B = _least(best_BK, cuts, probabilities_BV.shape[1])
    left_BK = best_BK.masked_fill_(best_BK < least_B[:, None], 0.0)
    places_B, _ = _pass(left_BK.cumsum(-1, dtype=torch.float64), uniform_B)
    return ids_BK.gather(1, places_B[:, None])[:, 0], least_B, beyond_B


def draw(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token [B] at which the cumulative weight passes `uniform` (float64) of the total."""
    rows, vocabulary = weights_BV.shape
    if vocabulary % _BLOCK:
        weights_BV = F.pad(weights_BV, (0, _BLOCK - vocabulary % _BLOCK))
    weights_BNW = weights_BV.view(rows, -1, _BLOCK)
    sums_BN = weights_BNW.sum(-1).cumsum(-1, dtype=torch.float64)
    block_B, share_B = _pass(sums_BN, uniform_B)
    block_BW = weights_BNW[torch.arange(rows, device=weights_BV.device), block_B]
    token_B, _ = _pass(block_BW.cumsum(-1, dtype=torch.float64), share_B)
    return block_B * _BLOCK + token_B


def _pass(sums_BN: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sums first pass that part of the last, and what part of the step there it is."""
    last_B = sums_BN[:, -1]
    # Rounding may bring it to the end, beyond which nothing lies.
    end_B = torch.nextafter(last_B, torch.zeros_like(last_B))
    at_B = torch.minimum(uniform_B * last_B, end_B)
    index_B = (sums_BN <= at_B[:, None]).sum(-1).clamp_(max=sums_BN.shape[1] - 1)
    after_B = sums_BN.gather(1, index_B[:, None])[:, 0]
    before_B = sums_BN.gather(1, (index_B - 1).clamp_(min=0)[:, None])[:, 0]
    before_B = torch.where(index_B > 0, before_B, 0.0)
    return index_B, (at_B - before_B) / (after_B - before_B)


def _least(best_BK: Tensor, cuts: Cuts, vocabulary: int) -> tuple[Tensor, Tensor]:
    """The least probability that stays, and whether what stays may go beyond the candidates: then
    it is that of min_p alone."""
    count = best_BK.shape[1]
    limit_B = torch.where(cuts.top_k_B > 0, cuts.top_k_B, vocabulary).clamp_(max=vocabulary)
    last_B = (limit_B - 1).clamp_(max=count - 1)
    sums_BK = best_BK.cumsum(-1, dtype=torch.float64)
    inside_B = sums_BK.gather(1, last_B[:, None])[:, 0]
    # What has less than top_p of the mass before it stays; the likeliest always.
    need_B = torch.where(limit_B <= count, inside_B, 1.0) * cuts.top_p_B
    kept_B = ((sums_BK - best_BK) < need_B[:, None]).sum(-1).clamp_(min=1)
    narrow_B = cuts.top_p_B < 1
    index_B = torch.where(narrow_B, torch.minimum(kept_B - 1, last_B), last_B)
    top_B = best_BK.gather(1, index_B[:, None])[:, 0]
    beyond_B = (limit_B > count) & (~narrow_B | (kept_B == count))
    top_B = torch.where(beyond_B, 0.0, top_B)
    return torch.maximum(top_B, cuts.min_p_B * best_BK[:, 0]), beyond_B


def _nucleus(weights_MV: Tensor, need_M: Tensor) -> Tensor:
    """The least of the greatest weights that together have the mass `need`, where these are many:
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
