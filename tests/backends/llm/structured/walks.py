"""Random answers that masks permit, and a check of values against schemas, for the tests here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from backends.llm.structured.mask import GrammarMask
from backends.llm.structured.vocabulary import Vocabulary
from tests.backends.llm.scripted import text_model

VOCABULARY: Vocabulary = text_model().vocabulary
(STOP,) = VOCABULARY.stop_ids


def tokens_of(mask: GrammarMask, vocabulary: Vocabulary = VOCABULARY) -> list[int]:
    bits = np.unpackbits(mask.allowed().view(np.uint8), bitorder="little")
    assert not bits[vocabulary.size :].any(), "no token that there is not"
    found: list[int] = np.flatnonzero(bits).tolist()
    return found


def walk(
    masks: Callable[[], GrammarMask], seed: int, most: int = 200, hurry: float = 0.5
) -> str | None:
    """A text that the masks permit; None if it did not end in time. `hurry`: how often the token
    is one by which texts end, where there is such a one."""
    random, mask, data = Random(seed), masks(), b""
    for _ in range(most):
        allowed = tokens_of(mask)
        assert allowed, "an answer never gets stuck"
        if random.random() < hurry:
            ending = [
                t for t in allowed if (VOCABULARY.pieces[t] or b"") in (b'"', b"}", b"]", b"")
            ]
            allowed = ending or allowed
        token = random.choice(allowed)
        if token == STOP:
            assert mask.accept(token)
            return data.decode()
        data += VOCABULARY.pieces[token] or b""
        if mask.accept(token):
            return data.decode()
    return None


def permits(masks: Callable[[], GrammarMask], text: str) -> bool:
    """Whether an answer may be exactly this, byte by byte."""
    mask = masks()
    data = text.encode()
    for place, byte in enumerate(data):
        if byte not in tokens_of(mask):
            return False
        if mask.accept(byte):
            return place == len(data) - 1
    return STOP in tokens_of(mask)


def valid(value: Any, schema: Any, root: Any = None) -> bool:
    """JSON Schema, as far as the tests use it; nothing of it is shared with what is tested."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].split("/")[1:]:
            found = found[part]
        return valid(value, found, root)
    for key in ("anyOf", "allOf"):
        if key in schema:
            fits = [valid(value, part, root) for part in schema[key]]
            return any(fits) if key == "anyOf" else all(fits)
    if "oneOf" in schema:
        return sum(valid(value, part, root) for part in schema["oneOf"]) == 1
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return False
    return _object(value, schema, root) and _array(value, schema, root) and _plain(value, schema)


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
    }  # fmt: skip
    return isinstance(value, types[kind])


def _object(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, dict):
        return True
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not set(schema.get("required", ())) <= value.keys():
        return False
    return all(valid(inner, properties.get(name, others), root) for name, inner in value.items())


def _array(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, list):
        return True
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return False
    first = schema.get("prefixItems", [])
    rest = value[len(first) :]
    return all(valid(*pair, root) for pair in zip(value, first, strict=False)) and all(
        valid(item, schema.get("items", True), root) for item in rest
    )


def _plain(value: Any, schema: Any) -> bool:
    if isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            return False
        return "pattern" not in schema or re.search(schema["pattern"], value, re.ASCII) is not None
    if _is(value, "number"):
        return not (
            value < schema.get("minimum", value)
            or value > schema.get("maximum", value)
            or value <= schema.get("exclusiveMinimum", -math.inf)
            or value >= schema.get("exclusiveMaximum", math.inf)
        )
    return True
