"""`Kernels` in Triton, for GPUs: shapes and grids of the kernels in `triton_*`.

Owns the launches. Nothing here reads device memory on the host or depends on a context's length, so
a step of decodes can be captured in a graph. Invariant: equal to `PlainKernels` to rounding, which
the tests check in Triton's interpreter, on a CPU.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from backends.llm.attention import triton_attention, triton_pointwise
from backends.llm.attention.kernels import Geometry, HeadNorms, Plan

# tl.dot wants at least so many rows.
MIN_ROWS = 16
# Positions whose scores are taken at once, and rows of a prefill's tile: what fits the registers,
# and the shared memory of small GPUs (99 KiB) with heads of so many bytes. Wider ones get less.
POSITIONS, PREFILL_ROWS, HEAD_BYTES = 64, 128, 256
GATE_BLOCK = 1024
# Programs that keep a GPU busy, per multiprocessor; parts of a context that still pay for merging.
PER_PROCESSOR, MAX_SPLITS = 4, 32


class TritonKernels:
    def __init__(self, geometry: Geometry, processors: int) -> None:
        """`processors`: multiprocessors of the GPU."""
        g = self._geometry = geometry
        self._group = g.heads // g.kv_heads
        self._d2 = triton.next_power_of_2(g.head_dim)
        self._scale = g.head_dim**-0.5
        self._programs = PER_PROCESSOR * processors

    def add_norm(
        self, x_TC: Tensor, delta_TC: Tensor | None, weight_C: Tensor
    ) -> tuple[Tensor, Tensor]:
        count, size = x_TC.shape
        out_TC = torch.empty_like(x_TC)
        if count:
            triton_pointwise.add_norm[(count,)](
                x_TC,
                x_TC if delta_TC is None else delta_TC,
                weight_C,
                out_TC,
                self._geometry.eps,
                C=size,
                C2=triton.next_power_of_2(size),
                ADDS=delta_TC is not None,
            )
        return x_TC, out_TC

    def write_kv(self, qkv_TE: Tensor, norms: HeadNorms | None, layer: int, plan: Plan) -> Tensor:
        g, count = self._geometry, len(qkv_TE)
        q_THD = qkv_TE.new_empty(count, g.heads, g.head_dim)
        triton_pointwise.write_kv[(count, g.heads + 2 * g.kv_heads)](
            qkv_TE,
            q_THD,
            plan.cache.keys_NPKZD[layer],
            plan.cache.values_NPKZD[layer],
            plan.step.slots_T,
            plan.cos_TD,
            plan.sin_TD,
            qkv_TE if norms is None else norms.query_D,
            qkv_TE if norms is None else norms.key_D,
            g.eps,
            H=g.heads,
            K=g.kv_heads,
            D=g.head_dim,
            F2=triton.next_power_of_2(g.head_dim // 2),
            Z=plan.cache.page_size,
            NORMS=norms is not None,
        )
        return q_THD

    def attend(self, q_THD: Tensor, layer: int, plan: Plan) -> Tensor:
        out_THD = torch.empty_like(q_THD)
        # A step of decodes alone has one token a sequence, in order.
        if plan.step.max_query == 1 and len(q_THD) == len(plan.step.contexts_S):
            self._decode(q_THD, out_THD, layer, plan)
        else:
            self._prefill(q_THD, out_THD, layer, plan)
        return out_THD.flatten(1)

    def gate(self, gate_up_TI2: Tensor) -> Tensor:
        count, both = gate_up_TI2.shape
        out_TI = gate_up_TI2.new_empty(count, both // 2)
        grid = (count, triton.cdiv(both // 2, GATE_BLOCK))
        triton_pointwise.gate[grid](gate_up_TI2, out_TI, I=both // 2, BLOCK=GATE_BLOCK)
        return out_TI

    def splits(self, sequences: int) -> int:
        """Parts of each context: by the shape of the step alone."""
        wanted = self._programs // max(1, sequences * self._geometry.kv_heads)
        return max(1, min(MAX_SPLITS, wanted))

    def tile(self, dtype: torch.dtype) -> tuple[int, int]:
        """Positions and rows of a tile of that dtype."""
        share = max(1, self._d2 * dtype.itemsize // HEAD_BYTES)
        return max(MIN_ROWS, POSITIONS // share), max(MIN_ROWS, PREFILL_ROWS // share)

    def _decode(self, q_SHD: Tensor, out_SHD: Tensor, layer: int, plan: Plan) -> None:
        g, count = self._geometry, len(q_SHD)
        splits, (positions, _) = self.splits(count), self.tile(q_SHD.dtype)
        parts = q_SHD.new_empty(
            (count, g.heads, splits, g.head_dim) if splits > 1 else (1,), dtype=torch.float32
        )
        stats = torch.empty(
            (count, g.heads, splits, 2) if splits > 1 else (1,),
            dtype=torch.float32,
            device=q_SHD.device,
        )
        triton_attention.decode[(count, g.kv_heads, splits)](
            q_SHD,
            plan.cache.keys_NPKZD[layer],
            plan.cache.values_NPKZD[layer],
            out_SHD,
            parts,
            stats,
            plan.step.contexts_S,
            plan.step.pages_SP,
            plan.step.pages_SP.stride(0),
            self._scale,
            H=g.heads,
            K=g.kv_heads,
            D=g.head_dim,
            D2=self._d2,
            Z=plan.cache.page_size,
            ROWS=max(MIN_ROWS, triton.next_power_of_2(self._group)),
            BLOCK=positions,
            SPLITS=splits,
        )
        if splits > 1:
            triton_attention.merge[(count * g.heads,)](
                parts,
                stats,
                out_SHD,
                D=g.head_dim,
                D2=self._d2,
                SPLITS=splits,
                N2=triton.next_power_of_2(splits),
            )

    def _prefill(self, q_THD: Tensor, out_THD: Tensor, layer: int, plan: Plan) -> None:
        g, step = self._geometry, plan.step
        positions, rows = self.tile(q_THD.dtype)
        tokens = max(1, rows // self._group)
        sequences = len(step.contexts_S)
        triton_attention.prefill[(len(q_THD) // tokens + sequences, g.kv_heads)](
            q_THD,
            plan.cache.keys_NPKZD[layer],
            plan.cache.values_NPKZD[layer],
            out_THD,
            step.starts_S1,
            step.contexts_S,
            step.pages_SP,
            sequences,
            step.pages_SP.stride(0),
            self._scale,
            H=g.heads,
            K=g.kv_heads,
            D=g.head_dim,
            D2=self._d2,
            Z=plan.cache.page_size,
            TOKENS=tokens,
            ROWS=max(MIN_ROWS, triton.next_power_of_2(tokens * self._group)),
            BLOCK=positions,
            num_warps=8 if rows == PREFILL_ROWS else 4,
        )
