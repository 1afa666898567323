"""Calls in texts: what the grammar permits, the parser finds, and nothing beside it."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.llm.structured.call_grammar import Callee, Writing, text_without
from backends.llm.structured.grammar import Grammar
from backends.llm.structured.grammars import Grammars
from backends.llm.toolformat import ToolCall, ToolFormat
from tests.backends.llm.structured.walks import VOCABULARY, permits, valid, walk

GRAMMARS = Grammars()
NODE = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/more"}},
    "required": ["n"],
    "$defs": {"more": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
}
COLOUR = {"type": "object", "properties": {"c": {"$ref": "#/$defs/more"}}, "required": ["c"],
          "$defs": {"more": {"enum": ["red", "blue"]}}}  # fmt: skip
SCHEMAS = {"node": NODE, "colour": COLOUR}
CALLEES = [Callee(name, schema, name) for name, schema in SCHEMAS.items()]


@pytest.mark.parametrize("name", ["hermes", "llama"])
@pytest.mark.parametrize("must", [True, False])
def test_calls_that_are_permitted_are_found_and_valid(name, must):
    format = ToolFormat(name)
    writing = Writing(format.key, format.marks or None)
    most = 1 if must else None
    masks = GRAMMARS.calls(VOCABULARY, CALLEES, writing, must=must, most=most)
    found = 0
    for seed in range(25):
        text = walk(masks, seed, most=150)
        if text is None:
            continue
        calls = [one for one in format.parser().feed(text, final=True) if isinstance(one, ToolCall)]
        assert len(calls) == (
            text.count("<tool_call>") if name == "hermes" else text.lstrip()[:1] == "{"
        )
        for call in calls:
            assert valid(orjson.loads(call.arguments), SCHEMAS[call.name])
        found += len(calls)
    assert found > 3 or not must


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("<ab>é"), max_size=9))
@example("<<ab>")
@example("<a<ab")
@example("<ab<a<")
def test_texts_without_a_mark(text):
    masks = GRAMMARS._masks(VOCABULARY, "test", b"", lambda: Grammar(text_without("<ab>"), {}))
    assert permits(masks, text) == (re.search("<ab>", text) is None)
