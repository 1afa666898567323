"""Chat templates, against transformers; what a template refuses is the client's error."""

from __future__ import annotations

import orjson
import pytest

from backends.errors import ModelFailed
from backends.llm.errors import BadRequest, BadTokenizer
from backends.llm.template import ChatTemplate
from tests.backends.llm.scripted import CHATML, HERMES, byte_level

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<b>é & 'x'"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "é<", "parameters": {}}}]
BUSY = (
    "{%- for m in messages %}\n    {% if loop.index0 == 1 %}{% continue %}{% endif %}\n"
    "  {{- bos_token + m.content | trim }}\n{%- endfor %}{{ tools | tojson(indent=2) }}"
    "{{ strftime_now('%Y') | length }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}"
)


@pytest.mark.parametrize("source", [CHATML, HERMES, BUSY])
def test_prompts_are_those_of_transformers(source):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="<|im_end|>", chat_template=source
    )
    expected = theirs.apply_chat_template(
        MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=True
    )
    ours = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "<|im_end|>"}, None)
    assert ours.render(MESSAGES, TOOLS) == expected


def test_what_the_template_refuses_is_a_bad_request():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {}, None)
    with pytest.raises(BadRequest, match="refuses this: roles must alternate") as found:
        template.render(MESSAGES)
    assert found.value.param == "messages"


def test_what_a_client_may_set():
    template = ChatTemplate("{{ mode }}{{ messages | length }}", {}, None)
    assert template.render(MESSAGES, extra={"mode": "x"}) == "x2"
    with pytest.raises(BadRequest, match="'documents' is set by the request itself"):
        template.render(MESSAGES, extra={"documents": []})


@pytest.mark.parametrize(
    "source", ["{{ messages.nothing.at.all }}", "{{ ''.__class__.__mro__ }}", "{{ 1 // 0 }}"]
)
def test_a_template_that_fails_or_breaks_out_is_the_models_fault(source):
    with pytest.raises(ModelFailed, match="chat template failed"):
        ChatTemplate(source, {}, None).render(MESSAGES)


def test_what_is_no_template():
    with pytest.raises(BadTokenizer, match="no Jinja template"):
        ChatTemplate("{% for %}", {}, None)


def test_where_templates_are_found(tmp_path):
    assert ChatTemplate.load(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    token = {"content": "</s>", "__type": "AddedToken"}
    config.write_bytes(orjson.dumps({"chat_template": "a{{ eos_token }}", "eos_token": token}))
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "a</s>"
    named = [{"name": "default", "template": "b"}, {"name": "tool_use", "template": "c"}]
    config.write_bytes(orjson.dumps({"chat_template": named}))
    template = ChatTemplate.load(tmp_path)
    assert (template.render(MESSAGES), template.render(MESSAGES, TOOLS)) == ("b", "c")
    (tmp_path / "chat_template.jinja").write_text("d")
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "d"
    (tmp_path / "chat_template.jinja").unlink()
    config.write_bytes(orjson.dumps({"chat_template": named[1:]}))
    with pytest.raises(BadTokenizer, match="no default"):
        ChatTemplate.load(tmp_path)


def test_which_templates_take_tools():
    formats = {
        CHATML: None,
        HERMES: "hermes",
        "{{ tools }}<tool_call><function=x>": None,
        '{{ tools }}<|python_tag|>{"parameters": 1}': "llama",
        "{{ tools }}": None,
    }
    for source, name in formats.items():
        found = ChatTemplate(source, {}, None).tools
        assert (found.name if found else None) == name
