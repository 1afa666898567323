"""One step of the engine as tensors: what the scheduler decided, in the form a model computes.

Owns the type of that seam. Invariant: tokens of one sequence are consecutive, in order, and end at
its context length; every token's KV has a slot of its own before the step runs.

Shape suffixes: T tokens of the step, S sequences in it, S1 = S + 1, P pages of the longest one,
L rows whose logits are wanted.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """Sequence s has tokens [starts_S1[s], starts_S1[s + 1]) of the step, which are the last ones
    of its `contexts_S[s]` tokens (cached and computed ones included). Token t's KV goes to
    slot slots_T[t] = page · page_size + offset. pages_SP is padded with page 0, which is reserved
    for padding and never read. A decode has one token; a prefill chunk many; both mix freely.
    """

    tokens_T: Tensor  # int64
    positions_T: Tensor  # int64
    slots_T: Tensor  # int64
    starts_S1: Tensor  # int32
    contexts_S: Tensor  # int32
    pages_SP: Tensor  # int32
    logits_L: Tensor  # int64, rows of the step whose logits are wanted
    # Host-side facts that kernels choose by, so that nothing synchronises.
    max_query: int
    max_context: int
