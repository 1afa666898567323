"""Triton: attention over pages. A decode splits its context over programs; a prefill does not.

Owns three kernels. Each program has one key head and all query heads that share it, so that a page
is read once. Lengths and pages are read from device memory: the grid depends on the step's shape
alone, and a captured graph may be replayed with other contexts. Masked positions are never loaded.

Shape suffixes: T tokens, S sequences, H query heads, K key heads, G = H / K, D head_dim, Z tokens
of a page, P pages of the longest sequence, N parts of a context.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

# `do_not_specialize`: counts that differ from step to step, which no kernel is to be compiled for.
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(
    q_MD, keys, values, table, head, first, end, last_M, m_M, l_M, acc_MD, scale,
    K: tl.constexpr, Z: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows of queries over positions [first, end) of one sequence; row i sees up to last_M[i]."""
    d = tl.arange(0, D2)
    for start in range(first, end, BLOCK):
        position = start + tl.arange(0, BLOCK)
        there = position < end
        page = tl.load(table + position // Z, mask=there, other=0).to(tl.int64)
        at = ((page * K + head) * Z + position % Z) * D
        inside = there[:, None] & (d < D)[None, :]
        k_BD = tl.load(keys + at[:, None] + d[None, :], mask=inside, other=0.0)
        score_MB = tl.dot(q_MD, tl.trans(k_BD), input_precision="ieee") * (scale * LOG2_E)
        seen = there[None, :] & (position[None, :] <= last_M[:, None])
        score_MB = tl.where(seen, score_MB, float("-inf"))
        top_M = tl.maximum(m_M, tl.max(score_MB, 1))
        # A row that has seen nothing yet keeps its zeros; -inf minus itself would not.
        safe_M = tl.where(top_M == float("-inf"), 0.0, top_M)
        weight_MB = tl.exp2(score_MB - safe_M[:, None])
        fade_M = tl.exp2(m_M - safe_M)
        v_BD = tl.load(values + at[:, None] + d[None, :], mask=inside, other=0.0)
        l_M = l_M * fade_M + tl.sum(weight_MB, 1)
        acc_MD = acc_MD * fade_M[:, None]
        acc_MD += tl.dot(weight_MB.to(v_BD.dtype), v_BD, input_precision="ieee")
        m_M = top_M
    return m_M, l_M, acc_MD


@triton.jit(do_not_specialize=["width"])
def decode(
    q, keys, values, out, part, part_stat, contexts, pages, width, scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, Z: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Grid (S, K, SPLITS). q and out [S, H, D]; part [S, H, N, D] and part_stat [S, H, N, 2] are
    used where SPLITS > 1: numerator, maximum (base 2) and sum of each part."""
    s, head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    G: tl.constexpr = H // K
    context = tl.load(contexts + s)
    size = tl.cdiv(tl.cdiv(context, BLOCK), SPLITS) * BLOCK
    first = split * size
    end = tl.minimum(first + size, context)
    row, d = tl.arange(0, ROWS), tl.arange(0, D2)
    inside = (row < G)[:, None] & (d < D)[None, :]
    mine = (s * H + head * G + row)[:, None]
    q_MD = tl.load(q + mine * D + d[None, :], mask=inside, other=0.0)
    m_M = tl.full([ROWS], float("-inf"), tl.float32)
    l_M = tl.zeros([ROWS], tl.float32)
    acc_MD = tl.zeros([ROWS, D2], tl.float32)
    last_M = tl.full([ROWS], 0, tl.int32) + context
    m_M, l_M, acc_MD = _tile(
        q_MD, keys, values, pages + s * width, head, first, end, last_M, m_M, l_M, acc_MD, scale,
        K, Z, D, D2, BLOCK,
    )  # fmt: skip
    if SPLITS == 1:
        acc_MD = acc_MD / tl.where(l_M == 0, 1.0, l_M)[:, None]
        tl.store(out + mine * D + d[None, :], acc_MD.to(out.dtype.element_ty), mask=inside)
    else:
        to = mine * SPLITS + split
        tl.store(part + to * D + d[None, :], acc_MD, mask=inside)
        stat = part_stat + (s * H + head * G + row) * (2 * SPLITS) + split * 2
        tl.store(stat, m_M, mask=row < G)
        tl.store(stat + 1, l_M, mask=row < G)


@triton.jit
def merge(
    part, part_stat, out, D: tl.constexpr, D2: tl.constexpr, SPLITS: tl.constexpr, N2: tl.constexpr
):
    """Grid (S · H). The parts of one query's context, by log-sum-exp."""
    row = tl.program_id(0).to(tl.int64)
    n, d = tl.arange(0, N2), tl.arange(0, D2)
    m_N = tl.load(part_stat + (row * SPLITS + n) * 2, mask=n < SPLITS, other=float("-inf"))
    l_N = tl.load(part_stat + (row * SPLITS + n) * 2 + 1, mask=n < SPLITS, other=0.0)
    top = tl.max(m_N, 0)
    share_N = tl.exp2(m_N - tl.where(top == float("-inf"), 0.0, top))
    inside = (n < SPLITS)[:, None] & (d < D)[None, :]
    part_ND = tl.load(part + (row * SPLITS + n)[:, None] * D + d[None, :], mask=inside, other=0.0)
    total = tl.sum(l_N * share_N, 0)
    out_D = tl.sum(part_ND * share_N[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(out + row * D + d, out_D.to(out.dtype.element_ty), mask=d < D)


@triton.jit(do_not_specialize=["width", "sequences"])
def prefill(
    q, keys, values, out, starts, contexts, pages, sequences, width, scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, D2: tl.constexpr, Z: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (T // TOKENS + S, K): a program has up to TOKENS tokens of one sequence, with all their
    queries of one key head. q and out [T, H, D]. How many programs a sequence has is not known on
    the host: sequence s has those from starts[s] // TOKENS + s on, the last of which may be empty.
    """
    program, head = tl.program_id(0), tl.program_id(1)
    G: tl.constexpr = H // K
    low = program * 0
    high = low + sequences
    while low < high - 1:  # the last sequence that begins at or before this program
        middle = (low + high) // 2
        begins = tl.load(starts + middle) // TOKENS + middle
        low = tl.where(begins <= program, middle, low)
        high = tl.where(begins <= program, high, middle)
    start, stop = tl.load(starts + low), tl.load(starts + low + 1)
    token = (program - start // TOKENS - low) * TOKENS  # of the sequence's in this step
    count = stop - start
    if token < count:
        context = tl.load(contexts + low)
        row, d = tl.arange(0, ROWS), tl.arange(0, D2)
        own = token + row // G
        valid = (row < TOKENS * G) & (own < count)
        mine = ((start + own).to(tl.int64) * H + head * G + row % G)[:, None]
        inside = valid[:, None] & (d < D)[None, :]
        q_MD = tl.load(q + mine * D + d[None, :], mask=inside, other=0.0)
        last_M = context - count + own
        end = tl.minimum(context, context - count + token + TOKENS)
        m_M = tl.full([ROWS], float("-inf"), tl.float32)
        l_M = tl.zeros([ROWS], tl.float32)
        acc_MD = tl.zeros([ROWS, D2], tl.float32)
        m_M, l_M, acc_MD = _tile(
            q_MD, keys, values, pages + low.to(tl.int64) * width, head, 0, end, last_M, m_M, l_M,
            acc_MD, scale, K, Z, D, D2, BLOCK,
        )  # fmt: skip
        acc_MD = acc_MD / tl.where(l_M == 0, 1.0, l_M)[:, None]
        tl.store(out + mine * D + d[None, :], acc_MD.to(out.dtype.element_ty), mask=inside)
