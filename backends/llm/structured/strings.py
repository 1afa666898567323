"""Strings of a JSON Schema as grammars: length, pattern, format, and lengths of the latter two.

Raises BadGrammar, with the path of the keyword.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.llm.errors import BadGrammar
from backends.llm.structured.formats import FORMATS, MATCHING, PLAIN
from backends.llm.structured.grammar import Form, Series, Text, Times
from backends.llm.structured.json_grammar import CHAR, escaped
from backends.llm.structured.keywords import take_bounds
from backends.llm.structured.lengths import sized
from backends.llm.structured.regex import parse_regex


def string_form(schema: Mapping[str, Any], path: str) -> Form:
    least, most = take_bounds(schema, "minLength", "maxLength", path)
    # A format beside a pattern is what zod writes; the pattern says it then.
    key = "pattern" if "pattern" in schema else "format"
    if schema.get(key) is None or (key == "format" and schema[key] in PLAIN):
        return Series((Text('"'), Times(CHAR, least, most), Text('"')))
    try:
        form = sized(_form(key, schema[key]), least, most)
    except BadGrammar as error:
        raise BadGrammar(f"{path}/{key}: {error.message}") from error
    return Series((Text('"'), escaped(form), Text('"')))


def _form(key: str, value: Any) -> Form:
    if not isinstance(value, str):
        raise BadGrammar("expected a string")
    if key == "format":
        if value not in FORMATS:
            raise BadGrammar(f"expected one of {', '.join([*FORMATS, *sorted(PLAIN)])}")
        return parse_regex(FORMATS[value])
    if value in MATCHING:
        return parse_regex(FORMATS[MATCHING[value]])
    return parse_regex(value, search=True)
