"""`response_format` and its like: what form an answer must have, as a grammar.

Owns the reading of those fields. Raises BadRequest, naming the place in the schema, for what
cannot be enforced: no answer is only probably right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends.llm.errors import BadRequest
from backends.llm.generation import TokenMask
from backends.llm.structured.grammars import Grammars
from backends.llm.surfaces.fields import ANY, FLAG, TABLE, TEXT, Fields, one_of
from backends.llm.text import TextModel

Masks = Callable[[], TokenMask]


def take_format(fields: Fields, text: TextModel, grammars: Grammars) -> Masks | None:
    """`response_format`, `guided_regex` or `guided_json`: at most one of them."""
    found: list[tuple[str, Masks]] = []
    if fields.has("response_format"):
        table = Fields(fields.take("response_format", TABLE, {}), "response_format")
        kind = table.need("type", one_of("text", "json_object", "json_schema", "regex"))
        masks: Masks | None = None
        if kind == "json_object":
            masks = grammars.json(text.vocabulary)
        elif kind == "regex":
            pattern = table.need("pattern", TEXT)
            masks = grammars.regex(text.vocabulary, pattern, table.named("pattern"))
        elif kind == "json_schema":
            inner = Fields(table.need("json_schema", TABLE), "response_format.json_schema")
            masks = take_schema(inner, text, grammars)
            inner.done()
        table.done()
        if masks is not None:
            found.append(("response_format", masks))
    if fields.has("guided_regex"):
        pattern = fields.need("guided_regex", TEXT)
        found.append(("guided_regex", grammars.regex(text.vocabulary, pattern, "guided_regex")))
    if fields.has("guided_json"):
        schema = fields.need("guided_json", ANY)
        found.append(("guided_json", grammars.schema(text.vocabulary, schema, "guided_json")))
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise BadRequest(f"{names} exclude each other", param=found[1][0])
    return found[0][1] if found else None


def take_schema(fields: Fields, text: TextModel, grammars: Grammars) -> Masks:
    """The fields of a named schema, as both OpenAI surfaces have them. `strict` changes nothing:
    every answer is held to its schema."""
    fields.need("name", TEXT)
    fields.take("description", TEXT, "")
    fields.take("strict", FLAG, False)
    schema: Any = fields.need("schema", ANY)
    return grammars.schema(text.vocabulary, schema, fields.named("schema"))
