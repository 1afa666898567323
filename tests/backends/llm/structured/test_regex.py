"""Regular expressions, against Python's own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammars import Grammars
from tests.backends.llm.structured.walks import VOCABULARY, permits, walk

GRAMMARS = Grammars()


def masks(pattern: str):
    return GRAMMARS.regex(VOCABULARY, pattern, "p")


PATTERNS = [
    r"abc",
    r"a|bc|",
    r"(foo|ba[rz]){2,3}",
    r"\d{4}-\d\d-\d\d",
    r"[^a-c\s]+x?",
    r"(?:[A-Z]\w*\s?){1,4}\.",
    r"-?(0|[1-9]\d*)(\.\d+)?",
    r"é+[日-月]*\u0041\x42",
    r"a{0}b{2,}c*?",
    r"(?P<year>\d+)/(?<month>\d)",
    r"[]a-]+[\d_-]",
    r"\(\[\{\\",
    r".",
    r"^anchored$",
    r"((a*)*b)*",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_masks_permit_matches(pattern):
    compiled = re.compile(pattern.replace("(?<month>", "(?P<month>"), re.ASCII)
    ended = 0
    for seed in range(15):
        text = walk(masks(pattern), seed, most=60)
        if text is not None:
            ended += 1
            assert compiled.fullmatch(text), text
    assert ended


# Atoms, and ways of putting them together; all of it means the same to Python.
atoms = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\d", "é"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(pattern=patterns, text=st.text(alphabet="ab1é\n", max_size=5))
def test_texts_are_permitted_where_python_says_so(pattern, text):
    assert permits(masks(pattern), text) == bool(re.fullmatch(pattern, text, re.ASCII))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a", "missing ')' at position 2"),
        ("a)", "unbalanced ')' at position 1"),
        ("[a", "unexpected end"),
        ("*a", "nothing to repeat before '*' at position 0"),
        ("a{3,1}", "0 ≤ n ≤ m"),
        ("a{,3}", "expected a number"),
        ("a++", "possessive"),
        (r"(?=a)", "look-around and flags are not supported"),
        (r"(?i)a", "look-around and flags are not supported"),
        (r"(a)\1", r"'\1' is not supported"),
        (r"\bword", r"'\b' is not supported"),
        (r"a^b", "only at the pattern's ends"),
        (r"^a|b", "an anchor holds for one alternative"),
        (r"[z-a]", "upside down"),
        (r"\xzz", "hex digits"),
        ("(" * 60 + ")" * 60, "nest deeper"),
        ("(a{9999}b{9999}){2}", "too large"),
        ("[^\\s\\S]", "no text has the form"),
        ("a" * 70_000, "65536 at most"),
    ],
)
def test_what_is_no_pattern_is_refused_with_its_place(pattern, said):
    with pytest.raises(BadGrammar, match=re.escape(said)) as found:
        masks(pattern)
    assert found.value.param == "p" and found.value.message.startswith("p: ")
