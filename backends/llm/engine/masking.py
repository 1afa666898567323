"""The masks of a step: asked for when all tokens before are known, while the device computes.

Invariant: a mask is its request's own: whatever it raises ends that choice, and no other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from backends.llm.engine.plan import Plan
from backends.llm.engine.runner import Masks
from backends.llm.engine.sequence import Sequence, Table


class Failed(NamedTuple):
    sequence: Sequence
    error: str


def collect(plan: Plan, table: Table) -> tuple[Masks, list[Failed]]:
    masks, failed = [], []
    rows = plan.sampled
    for place in np.flatnonzero(table.special[rows] & ~table.ended[rows]).tolist():
        sequence = table.sequences[rows[place]]
        assert sequence is not None
        make = sequence.generation.mask
        if make is None:
            continue
        try:
            if sequence.mask is None:
                sequence.mask = make()
            masks.append((place, sequence.mask.allowed()))
        except Exception as error:
            failed.append(Failed(sequence, f"the mask failed: {error!r}"))
    return masks, failed
