"""`tools` and `tool_choice`: what is offered to the model, and whether it must take one.

Owns the reading of those fields. A choice that must be made, and the arguments of `strict` tools,
are enforced by a grammar: the call's form is then certain. Raises BadRequest; a model whose
template takes no tools gets none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.llm.errors import UnsupportedField
from backends.llm.generation import TokenMask
from backends.llm.structured.call_grammar import Callee, Writing
from backends.llm.structured.grammars import Grammars
from backends.llm.surfaces.fields import FLAG, LIST, TABLE, TEXT, Fields, Kind, one_of
from backends.llm.template import ChatTemplate
from backends.llm.text import TextModel
from backends.llm.toolformat import CLOSE, ToolFormat

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
    # Where `strict` says so, calls are held to their schema though none has to be made.
    strict: set[int] = set()
    tools = [_tool(Fields(body, f"tools[{at}]"), at, strict) for at, body in enumerate(offered)]
    if choice == "none":
        return Tools()
    writing = template.tools
    # With one call at most, the answer ends where its first call does.
    stops = (CLOSE,) if not parallel and writing.marks else ()
    if choice == "auto":
        mask = None
        if strict:
            callees = [_callee(at, tool, at in strict) for at, tool in enumerate(tools)]
            most = None if parallel else 1
            mask = _masks(text, grammars, writing, callees, must=False, most=most)
        return Tools(tools, writing, mask, stops)
    chosen = range(len(tools)) if choice == "required" else [_named(fields, choice, tools)]
    callees = [_callee(at, tools[at], True) for at in chosen]
    mask = _masks(text, grammars, writing, callees, must=True, most=1)
    return Tools(tools, writing, mask)


def _masks(
    text: TextModel,
    grammars: Grammars,
    format: ToolFormat,
    callees: Sequence[Callee],
    *,
    must: bool,
    most: int | None,
) -> Callable[[], TokenMask]:
    writing = Writing(format.key, format.marks or None)
    return grammars.calls(text.vocabulary, callees, writing, must=must, most=most)


def _callee(at: int, tool: dict[str, Any], held: bool) -> Callee:
    """`held`: its arguments are held to its schema."""
    function = tool["function"]
    schema = function["parameters"] if held else None
    return Callee(function["name"], schema, f"tools[{at}].function.parameters")


def _tool(fields: Fields, at: int, strict: set[int]) -> dict[str, Any]:
    fields.need("type", one_of("function"))
    function = Fields(fields.need("function", TABLE), fields.named("function"))
    made: dict[str, Any] = {"name": function.need("name", TEXT)}
    made["description"] = function.take("description", TEXT, "")
    made["parameters"] = function.take("parameters", TABLE, {"type": "object", "properties": {}})
    if function.take("strict", FLAG, False):
        strict.add(at)
    function.done()
    fields.done()
    return {"type": "function", "function": made}


def _named(fields: Fields, choice: Any, tools: Sequence[dict[str, Any]]) -> int:
    table = Fields(choice, fields.named("tool_choice"))
    table.need("type", one_of("function"))
    function = Fields(table.need("function", TABLE), table.named("function"))
    name = function.need("name", TEXT)
    for at, tool in enumerate(tools):
        if tool["function"]["name"] == name:
            return at
    raise function.wrong("name", f"there is no tool {name!r}")
