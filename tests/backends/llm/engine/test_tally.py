"""Counts of tokens, against counting."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.llm.engine.tally import Tally

TOKENS = st.lists(st.integers(0, 60), max_size=120)


@given(TOKENS, TOKENS)
def test_a_tally_counts_what_is_generated_beside_what_was_there(
    prompt: list[int], generated: list[int]
) -> None:
    tally = Tally(np.array(prompt, np.int32))
    for token in generated:
        tally.add(token)
    found = dict(zip(tally.ids.tolist(), tally.counts.tolist(), strict=True))
    assert len(found) == len(tally.ids), "each token once"
    assert found == dict.fromkeys(prompt, 0) | Counter(generated)
