"""Torch alone: pages are gathered, then SDPA. Runs on every device; the oracle of all kernels.

Owns nothing but the arithmetic. Reads the step's tables on the host, so on a GPU it synchronises:
there it is for tests only. Invariant: rounds where the Hugging Face models round.

Shape suffixes as in `kernels`; G = H / K queries a key head, Q tokens of one sequence in the step,
W = pages · Z positions that were gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from backends.llm.attention.kernels import Geometry, HeadNorms, Plan
from backends.models.rope import turn


class PlainKernels:
    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def add_norm(
        self, x_TC: Tensor, delta_TC: Tensor | None, weight_C: Tensor
    ) -> tuple[Tensor, Tensor]:
        x_TC = x_TC if delta_TC is None else x_TC + delta_TC
        return x_TC, self._norm(x_TC, weight_C)

    def write_kv(self, qkv_TE: Tensor, norms: HeadNorms | None, layer: int, plan: Plan) -> Tensor:
        g = self._geometry
        heads_TED = qkv_TE.view(len(qkv_TE), g.heads + 2 * g.kv_heads, g.head_dim)
        q_THD, k_TKD, v_TKD = torch.split(heads_TED, [g.heads, g.kv_heads, g.kv_heads], 1)
        if norms is not None:
            q_THD, k_TKD = self._norm(q_THD, norms.query_D), self._norm(k_TKD, norms.key_D)
        cos_T1D, sin_T1D = plan.cos_TD[:, None], plan.sin_TD[:, None]
        pages_T = plan.step.slots_T // plan.cache.page_size
        within_T = plan.step.slots_T % plan.cache.page_size
        plan.cache.keys_NPKZD[layer][pages_T, :, within_T] = turn(k_TKD, cos_T1D, sin_T1D)
        plan.cache.values_NPKZD[layer][pages_T, :, within_T] = v_TKD
        return turn(q_THD, cos_T1D, sin_T1D)

    def attend(self, q_THD: Tensor, layer: int, plan: Plan) -> Tensor:
        starts, contexts = plan.step.starts_S1.tolist(), plan.step.contexts_S.tolist()
        out_THD = torch.empty_like(q_THD)
        single = [s for s in range(len(contexts)) if starts[s + 1] - starts[s] == 1]
        if single:
            rows = [starts[s] for s in single]
            out_THD[rows] = self._decode(q_THD[rows], single, layer, plan)
        for s, context in enumerate(contexts):
            first, end = starts[s], starts[s + 1]
            if end - first > 1:
                out_THD[first:end] = self._prefill(q_THD[first:end], s, context, layer, plan)
        return out_THD.flatten(1)

    def gate(self, gate_up_TI2: Tensor) -> Tensor:
        gate_TI, up_TI = gate_up_TI2.chunk(2, -1)
        return F.silu(gate_TI) * up_TI

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._geometry.eps)
        return weight * (wide * scale).to(x.dtype)

    def _decode(self, q_SHD: Tensor, which: list[int], layer: int, plan: Plan) -> Tensor:
        """One query a sequence: all of them at once, shorter contexts masked."""
        g, step = self._geometry, plan.step
        pages_SP, contexts_S = step.pages_SP[which], step.contexts_S[which]
        used = -(-int(contexts_S.max()) // plan.cache.page_size)
        k_SKWD, v_SKWD = self._gathered(pages_SP[:, :used], layer, plan)
        positions_W = torch.arange(k_SKWD.shape[2], device=q_SHD.device)
        seen_S11W = (positions_W < contexts_S[:, None])[:, None, None]
        # Beyond the context a page may hold anything, and 0 · NaN is NaN.
        k_SKWD, v_SKWD = (t.masked_fill_(~seen_S11W.mT, 0) for t in (k_SKWD, v_SKWD))
        q_SKGD = q_SHD.view(len(which), g.kv_heads, -1, g.head_dim)
        return F.scaled_dot_product_attention(q_SKGD, k_SKWD, v_SKWD, seen_S11W).view_as(q_SHD)

    def _prefill(self, q_QHD: Tensor, s: int, context: int, layer: int, plan: Plan) -> Tensor:
        """Many queries of one sequence, the last of its context: query i sees all but the Q - 1 - i
        last positions."""
        g, count = self._geometry, len(q_QHD)
        used = -(-context // plan.cache.page_size)
        k_1KWD, v_1KWD = self._gathered(plan.step.pages_SP[s : s + 1, :used], layer, plan)
        k_1HWD, v_1HWD = (
            t[:, :, :context].repeat_interleave(g.heads // g.kv_heads, 1) for t in (k_1KWD, v_1KWD)
        )
        seen_QW = None
        if count != context:
            seen_QW = torch.ones(count, context, dtype=torch.bool, device=q_QHD.device)
            seen_QW = seen_QW.tril(context - count)
        out_1HQD = F.scaled_dot_product_attention(
            q_QHD.transpose(0, 1)[None], k_1HWD, v_1HWD, seen_QW, is_causal=seen_QW is None
        )
        return out_1HQD[0].transpose(0, 1)

    def _gathered(self, pages_SP: Tensor, layer: int, plan: Plan) -> tuple[Tensor, Tensor]:
        def gather(cache_PKZD: Tensor) -> Tensor:
            found_SPKZD = cache_PKZD[pages_SP.long()]
            return found_SPKZD.transpose(1, 2).flatten(2, 3)

        return gather(plan.cache.keys_NPKZD[layer]), gather(plan.cache.values_NPKZD[layer])
