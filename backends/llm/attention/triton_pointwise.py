"""Triton: what stands between matrix products, each as one pass over memory.

Owns the fused kernels: residual and norm; head norms, rotation and the writing of keys and values;
the gate. They round to the activations' dtype where `PlainKernels` does.

Shape suffixes as in `kernels`; F = D / 2.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(x, delta, weight, out, eps, C: tl.constexpr, C2: tl.constexpr, ADDS: tl.constexpr):
    """Grid (T). x += delta, in place; out = norm(x) · weight."""
    at = tl.program_id(0).to(tl.int64) * C
    c = tl.arange(0, C2)
    inside = c < C
    kind = x.dtype.element_ty
    x_C = tl.load(x + at + c, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x_C += tl.load(delta + at + c, mask=inside, other=0.0).to(tl.float32)
        x_C = x_C.to(kind).to(tl.float32)
        tl.store(x + at + c, x_C.to(kind), mask=inside)
    scale = tl.rsqrt(tl.sum(x_C * x_C, 0) / C + eps)
    w_C = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    out_C = w_C * (x_C * scale).to(kind).to(tl.float32)
    tl.store(out + at + c, out_C.to(kind), mask=inside)


@triton.jit
def write_kv(
    qkv, q_out, keys, values, slots, cosine, sine, q_weight, k_weight, eps,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, F2: tl.constexpr, Z: tl.constexpr,
    NORMS: tl.constexpr,
):  # fmt: skip
    """Grid (T, H + 2K): one head of one token."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    F: tl.constexpr = D // 2
    f = tl.arange(0, F2)
    inside = f < F
    kind = qkv.dtype.element_ty
    source = qkv + (token * (H + 2 * K) + head) * D + f
    low_F = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    high_F = tl.load(source + F, mask=inside, other=0.0).to(tl.float32)
    slot = tl.load(slots + token)
    if head < H + K:
        if NORMS:
            square = tl.sum(low_F * low_F, 0) + tl.sum(high_F * high_F, 0)
            scale = tl.rsqrt(square / D + eps)
            weight = q_weight
            if head >= H:
                weight = k_weight
            low_w_F = tl.load(weight + f, mask=inside, other=0.0).to(tl.float32)
            high_w_F = tl.load(weight + F + f, mask=inside, other=0.0).to(tl.float32)
            low_F = (low_w_F * (low_F * scale).to(kind).to(tl.float32)).to(kind).to(tl.float32)
            high_F = (high_w_F * (high_F * scale).to(kind).to(tl.float32)).to(kind).to(tl.float32)
        cos_F = tl.load(cosine + token * D + f, mask=inside, other=0.0).to(tl.float32)
        sin_F = tl.load(sine + token * D + f, mask=inside, other=0.0).to(tl.float32)
        low_cos_F = (low_F * cos_F).to(kind).to(tl.float32)
        low_sin_F = (low_F * sin_F).to(kind).to(tl.float32)
        high_cos_F = (high_F * cos_F).to(kind).to(tl.float32)
        high_sin_F = (high_F * sin_F).to(kind).to(tl.float32)
        low_F, high_F = low_cos_F - high_sin_F, high_cos_F + low_sin_F
    if head < H:
        target = q_out + (token * H + head) * D + f
    elif head < H + K:
        target = keys + (((slot // Z) * K + head - H) * Z + slot % Z) * D + f
    else:
        target = values + (((slot // Z) * K + head - H - K) * Z + slot % Z) * D + f
    tl.store(target, low_F.to(kind), mask=inside)
    tl.store(target + F, high_F.to(kind), mask=inside)


@triton.jit
def gate(gate_up, out, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    """Grid (T, parts of I). silu of the first half times the second."""
    token = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < I
    kind = out.dtype.element_ty
    g = tl.load(gate_up + token * 2 * I + i, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate_up + token * 2 * I + I + i, mask=inside, other=0.0).to(tl.float32)
    silu = (g / (1.0 + tl.exp(-g))).to(kind).to(tl.float32)
    tl.store(out + token * I + i, (silu * u).to(kind), mask=inside)
