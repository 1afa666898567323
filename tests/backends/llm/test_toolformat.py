"""Calls of tools in the text, wherever it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llm.toolformat import ToolCall, ToolFormat

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": [1, "</b>"]}}\n</tool_call>'
F = ToolCall("f", '{"x":[1,"</b>"]}')


def read(name, text, cuts=()):
    """Text that was said, put together, and calls, in order."""
    parser = ToolFormat(name).parser()
    said, at = [], 0
    for size in cuts:
        said += parser.feed(text[at : at + size])
        at += size
    said += parser.feed(text[at:], final=True)
    joined: list[str | ToolCall] = []
    for one in said:
        if isinstance(one, str) and joined and isinstance(joined[-1], str):
            joined[-1] += one
        else:
            joined.append(one)
    return joined


HERMES = [
    ("just text", ["just text"]),
    (CALL, [F]),
    (f"Let me see.\n{CALL}", ["Let me see.", F]),
    (f"{CALL}\n{CALL}\n", [F, F]),
    (CALL.removesuffix("\n</tool_call>"), [F]),
    ("a <tool", ["a <tool"]),
    ("1 < 2 and\n\n3", ["1 < 2 and\n\n3"]),
    ("<tool_call>no json</tool_call>", ["<tool_call>no json</tool_call>"]),
    ('<tool_call>{"name": 1}', ['<tool_call>{"name": 1}']),
    (f"{CALL}done", [F, "done"]),
]
LLAMA = [
    ("just text", ["just text"]),
    ('{"name": "f", "parameters": {"x": [1, "</b>"]}}', [F]),
    ('{"name": "f", "arguments": "{}"}', [ToolCall("f", "{}")]),
    ('{"no": "call"}', ['{"no": "call"}']),
    ('text {"name": "f", "parameters": {}}', ['text {"name": "f", "parameters": {}}']),
    ("", []),
]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("hermes", *case) for case in HERMES] + [("llama", *case) for case in LLAMA],
)
def test_calls_and_text(name, text, said):
    assert read(name, text) == said
    for size in (1, 2, 3, 7):
        assert read(name, text, [size] * (len(text) // size)) == said


@given(text=st.text(alphabet="<tool_call>/{}\n ", max_size=40), cut=st.integers(1, 5))
def test_text_without_a_call_is_said_as_it_is(text, cut):
    said = "".join(one for one in read("hermes", text, [cut] * 10) if isinstance(one, str))
    assert said == text or "<tool_call>" in text
