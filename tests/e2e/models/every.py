"""A model that takes and gives every datatype as it came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.wire import DATATYPES, Signature, TensorSpec


class Every:
    """One input and one output of each datatype; variable-length, so equal widths share a batch."""

    signature = Signature(
        tuple(TensorSpec(name, name, (-1,)) for name in DATATYPES),
        tuple(TensorSpec(f"out_{name}", name, (-1,)) for name in DATATYPES),
        max_batch_size=16,
    )

    def infer(self, **inputs: Any) -> Mapping[str, Any]:
        return {f"out_{name}": value for name, value in inputs.items()}
