"""Patterns with a length: exactly the texts of both, where that is said to be exact."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammars import Grammars
from backends.llm.structured.lengths import span
from backends.llm.structured.regex import parse_regex
from tests.backends.llm.structured.walks import VOCABULARY, permits

GRAMMARS = Grammars()
PATTERNS = ["a*", "(ab|c)*", "a+b?c*", "(a|bb){1,3}c*", "[ab]{2}c?", "(a*b)*", "c", "(ab*)?(c|aa)*"]


@settings(max_examples=150, deadline=None)
@given(
    pattern=st.sampled_from(PATTERNS),
    text=st.text("abc", max_size=7),
    least=st.integers(0, 5),
    more=st.one_of(st.none(), st.integers(0, 4)),
)
def test_exactly_the_texts_of_both(pattern, text, least, more):
    schema = {"type": "string", "pattern": f"^({pattern})$", "minLength": least}
    if more is not None:
        schema["maxLength"] = least + more
    fits = least <= len(text) <= (len(text) if more is None else least + more)
    expected = fits and re.fullmatch(pattern, text) is not None
    try:
        made = GRAMMARS.schema(VOCABULARY, schema, "s")
    except BadGrammar:
        assert not expected
        return
    assert permits(made, f'"{text}"') == expected


def test_what_is_large_gets_a_share_of_the_length():
    """Not every text, and none that is too long."""
    pattern = "^([a-z]+ )*[0-9]{1,900}x*$"
    made = GRAMMARS.schema(
        VOCABULARY, {"type": "string", "pattern": pattern, "maxLength": 3000}, "s"
    )
    assert permits(made, '"1xxx"')
    with pytest.raises(BadGrammar, match="too large together with"):
        GRAMMARS.schema(
            VOCABULARY,
            {"type": "string", "pattern": "^([a-z]+ )*[0-9]*$", "minLength": 3000},
            "s",
        )


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("a{2,3}b*", (2, None)), ("(a|bcd)?", (0, 3)), ("a{0}", (0, 0)), ("(a{0})*x", (1, 1))],
)
def test_spans(pattern, found):
    assert span(parse_regex(pattern)) == found
