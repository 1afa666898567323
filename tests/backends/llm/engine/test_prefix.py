"""Names of pages: equal exactly where everything before was equal."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.llm.engine.pages import Pages
from backends.llm.engine.prefix import Prefix, chain, root
from backends.llm.engine.sequence import Sequence, Table
from tests.backends.llm.fakes import generation

SIZE = 4
TOKENS = st.lists(st.integers(0, 2), min_size=SIZE * 3, max_size=SIZE * 3)


def names(tokens: list[int], version: str = "v", salt: str = "") -> list[bytes]:
    found: list[bytes] = []
    chain(found, root(version, salt), np.array(tokens, np.int32), SIZE, len(tokens) // SIZE)
    return found


@given(TOKENS, TOKENS)
def test_pages_have_one_name_where_all_tokens_up_to_them_are_equal(
    one: list[int], other: list[int]
) -> None:
    for page, (a, b) in enumerate(zip(names(one), names(other), strict=True), 1):
        assert (a == b) == (one[: page * SIZE] == other[: page * SIZE])


def test_versions_and_salts_share_no_names() -> None:
    tokens = [1] * SIZE
    pairs = [("v", ""), ("w", ""), ("v", "a"), ("va", ""), ("v", "b"), ("", "va")]
    assert len({names(tokens, *pair)[0] for pair in pairs}) == len(pairs)


def test_at_least_one_token_is_left_to_compute() -> None:
    pages, table = Pages(8), Table(1, 64, SIZE)
    prefix = Prefix(table, pages, isolate=False, reuse=True)
    tokens = list(range(SIZE * 2))
    for page, name in zip(pages.take(2), names(tokens), strict=True):
        pages.name(page, name, "v")
    for length, found in ((SIZE - 1, 0), (SIZE, 0), (SIZE + 1, 1), (SIZE * 2, 1)):
        each = generation(0, tokens[:length])
        sequence = Sequence(each, 0, np.array(tokens[:length], np.int32), 64, 0)
        assert len(prefix.find(sequence, "v")) == found
        assert prefix.find(sequence, "w") == []


def test_tenants_share_pages_only_where_they_may() -> None:
    pages, table = Pages(8), Table(1, 64, SIZE)
    tokens = np.arange(SIZE + 1, dtype=np.int32)
    pages.name(pages.take(1)[0], names(list(range(SIZE)), salt="a")[0], "v")
    prefix = Prefix(table, pages, isolate=True, reuse=True)
    for tenant, found in (("a", 1), ("b", 0)):
        sequence = Sequence(generation(0, tokens, tenant=tenant), 0, tokens, 64, 0)
        assert len(prefix.find(sequence, "v")) == found
