"""`tools` and `tool_choice`: what is offered to the model, and whether it must take one.

Owns the reading of those fields. A choice that must be made is enforced by a grammar: the call's
form is then certain. Raises BadRequest; a model whose template takes no tools gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.llm.errors import UnsupportedField
from backends.llm.generation import TokenMask
from backends.llm.structured.grammars import Grammars
from backends.llm.surfaces.fields import FLAG, LIST, TABLE, TEXT, Fields, Kind, one_of
from backends.llm.template import ChatTemplate
from backends.llm.text import TextModel
from backends.llm.toolformat import CLOSE, OPEN, ToolFormat

MAX_TOOLS = 1024
_CHOICE: Kind[Any] = Kind(
    "none, auto, required or an object that names a function",
    lambda value: value in ("none", "auto", "required") or isinstance(value, dict),
)


@dataclass(frozen=True, slots=True)
class Tools:
    offered: Sequence[dict[str, Any]] = ()
    # How to find calls in the answer; None where there can be none.
    format: ToolFormat | None = None
    mask: Callable[[], TokenMask] | None = None
    stops: tuple[str, ...] = ()


def take_tools(
    fields: Fields, template: ChatTemplate, text: TextModel, grammars: Grammars
) -> Tools:
    offered = fields.take("tools", LIST, [])
    choice = fields.take("tool_choice", _CHOICE, "auto" if offered else "none")
    parallel = fields.take("parallel_tool_calls", FLAG, True)
    if not offered:
        if choice not in ("none", "auto"):
            raise fields.wrong("tool_choice", "there are no tools to choose from")
        return Tools()
    if template.tools is None:
        message = "'tools' is not supported: this model's chat template takes no tools."
        raise UnsupportedField(message, param="tools")
    if len(offered) > MAX_TOOLS:
        raise fields.wrong("tools", f"expected at most {MAX_TOOLS}")
    tools = [_tool(Fields(body, f"tools[{at}]")) for at, body in enumerate(offered)]
    if choice == "none":
        return Tools()
    # With one call at most, the answer ends where its first call does.
    stops = (CLOSE,) if not parallel and template.tools.name == "hermes" else ()
    if choice == "auto":
        return Tools(tools, template.tools, None, stops)
    chosen = tools if choice == "required" else [_named(fields, choice, tools)]
    if template.tools.name != "hermes":
        message = "'tool_choice' is not supported beyond none and auto for this model's template."
        raise UnsupportedField(message, param="tool_choice")
    schema = {"anyOf": [_call_schema(tool["function"]) for tool in chosen]}
    mask = grammars.schema(text.vocabulary, schema, "tools", around=(f"{OPEN}\n", f"\n{CLOSE}"))
    return Tools(tools, template.tools, mask)


def _tool(fields: Fields) -> dict[str, Any]:
    fields.need("type", one_of("function"))
    function = Fields(fields.need("function", TABLE), fields.named("function"))
    made: dict[str, Any] = {"name": function.need("name", TEXT)}
    made["description"] = function.take("description", TEXT, "")
    made["parameters"] = function.take("parameters", TABLE, {"type": "object", "properties": {}})
    # Calls are held to their schema only where a call must be made (`tool_choice`).
    function.refuse("strict", "the schema is enforced only by tool_choice", False)
    function.done()
    fields.done()
    return {"type": "function", "function": made}


def _named(fields: Fields, choice: Any, tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    table = Fields(choice, fields.named("tool_choice"))
    table.need("type", one_of("function"))
    function = Fields(table.need("function", TABLE), table.named("function"))
    name = function.need("name", TEXT)
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    raise function.wrong("name", f"there is no tool {name!r}")


def _call_schema(function: dict[str, Any]) -> dict[str, Any]:
    parameters: Any = function["parameters"]
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
