"""Bodies that are wrong somewhere: each is refused by the field's name, whatever stands in it."""

from __future__ import annotations

import copy

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.errors import BackendError
from backends.llm.prepare import PARSERS, Preparation
from tests.backends.llm.scripted import HERMES, setting, text_model

TEXT = text_model(HERMES, max_context=4096)
SETTING = setting()
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHOOSING = {
    "temperature": 0.5, "top_p": 0.5, "stop": ["x"], "seed": 1, "logit_bias": {"1": 2},
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "top_k": 3, "min_p": 0.1, "n": 1,
    "repetition_penalty": 1.1, "ignore_eos": False, "min_tokens": 1, "stop_token_ids": [1],
    "priority": 1, "timeout": 5,
}  # fmt: skip
SHARED = {"model": "m", **CHOOSING}
ROUTING = {
    "user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k",
    "store": False, "service_tier": "auto", "stream": True,
}  # fmt: skip
SCHEMA = {"name": "s", "description": "d", "strict": True, "schema": {"type": "integer"}}
OPTIONS = {"include_usage": True, "include_obfuscation": False}
BODIES = {
    "chat": {
        **SHARED, **ROUTING, "max_tokens": 5, "max_completion_tokens": 5, "logprobs": True,
        "top_logprobs": 2, "stream_options": OPTIONS, "chat_template_kwargs": {"a": 1},
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
        "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto",
        "parallel_tool_calls": True,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": "a", "name": "n"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "tool_call_id": "c"},
        ],
    },
    "completions": {
        **SHARED, **ROUTING, "prompt": ["a", [1, 2]], "max_tokens": 5, "logprobs": 2, "echo": True,
        "best_of": 1, "stream_options": OPTIONS, "guided_regex": "a+",
    },
    "responses": {
        **SHARED, **ROUTING, "instructions": "i", "max_output_tokens": 5, "tool_choice": "auto",
        "tools": [{"type": "function", **FUNCTION}], "parallel_tool_calls": True,
        "text": {"format": {"type": "json_schema", **SCHEMA}},
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "4"},
        ],
    },
    "generate": {"text_input": "a", "id": "1", "parameters": {**CHOOSING, "max_tokens": 5}},
}  # fmt: skip
WRONG = (5.5, -(2**63), "\0", "", [], [[]], [None], {}, {"no\0": {}}, True)


def ask(surface, body):
    PARSERS[surface](body, TEXT, SETTING)


def places(value, path=()):
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inside:
        if isinstance(one, (dict, list)):
            yield from places(one, (*path, key))
        else:
            yield (*path, key)


CASES = [(surface, path) for surface, body in BODIES.items() for path in places(body) if path]


@pytest.mark.parametrize("surface", BODIES)
def test_a_body_with_every_field_is_good(surface):
    ask(surface, BODIES[surface])


@pytest.mark.parametrize(
    ("surface", "path"), CASES, ids=[f"{s}-{'.'.join(map(str, p))}" for s, p in CASES]
)
def test_whatever_stands_in_a_field_is_taken_or_refused_by_its_name(surface, path):
    refused = 0
    for wrong in WRONG:
        body = copy.deepcopy(BODIES[surface])
        inner = body
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        try:
            ask(surface, body)
        except BackendError as error:
            assert error.status == 400, error
            assert named(error, path), (wrong, error.param, error.message)
            refused += 1
    free = {"description", "chat_template_kwargs", "parameters", "schema"}
    assert refused or free & {*path}, "nothing that is wrong is refused"


def named(error, path) -> bool:
    """The message or `param` has the field's name, or that of what it stands in."""
    said = f"{error.param} {error.message}"
    return any(key in said for key in (*path, "no\0") if isinstance(key, str))


DEEP = b'{"a":' * 900 + b"1" + b"}" * 900
HI = b'{"messages": [{"role": "user", "content": "x"}], '
TOOL = HI + b'"tools": [{"type": "function", "function": {"name": "f", "parameters": %b}}]}'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (TOOL % DEEP, "'tools' is nested deeper than 100"),
        (TOOL[:-1] % DEEP + b', "tool_choice": "required"}', "tools"),
        (HI + b'"chat_template_kwargs": %b}' % DEEP, "'chat_template_kwargs' is nested deeper"),
        (HI + b'"guided_json": %b}' % (DEEP.replace(b'"a"', b'"items"')), "guided_json"),
        (HI + b'"metadata": %b}' % DEEP, "'metadata'"),
        (b'{"messages": [%b]}' % DEEP, "role"),
        (HI + b'"guided_regex": "%b"}' % (b"(" * 5000), "guided_regex"),
        (HI + b'"stop": [%b"x"]}' % (b'"x",' * 5000), "'stop'"),
    ],
)
def test_what_is_nested_or_repeated_without_end_is_refused(body, said):
    with pytest.raises(BackendError, match=said) as error:
        Preparation(SETTING).now("chat", body, TEXT)
    assert error.value.status == 400


def test_arguments_of_calls_may_be_no_deeper():
    call = {"function": {"name": "f", "arguments": "[" * 900 + "]" * 900}}
    body = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    with pytest.raises(BackendError, match="'messages' is nested deeper than 100"):
        ask("chat", body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(surface=st.sampled_from(sorted(BODIES)), data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_body_is_more_than_refused(surface, data):
    body = copy.deepcopy(BODIES[surface])
    for path in data.draw(st.lists(st.sampled_from([p for s, p in CASES if s == surface]))):
        inner = body
        for key in path[:-1]:
            try:
                inner = inner[key]
            except (KeyError, IndexError, TypeError):
                break
        if isinstance(inner, dict) and isinstance(path[-1], str):
            inner[path[-1]] = data.draw(JSON)
    try:
        ask(surface, orjson.loads(orjson.dumps(body)))
    except BackendError as error:
        assert error.status == 400, error
