"""The values of a JSON Schema's keywords, checked. Raises BadGrammar, with the keyword's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from backends.llm.errors import BadGrammar

MAX_COUNT = 10_000


def take_bounds(
    schema: Mapping[str, Any], low: str, high: str, path: str
) -> tuple[int, int | None]:
    for key in (low, high):
        value = schema.get(key, 0)
        if type(value) is not int or not 0 <= value <= MAX_COUNT:
            raise BadGrammar(f"{path}/{key}: expected an integer from 0 to {MAX_COUNT}")
    least, most = schema.get(low, 0), schema.get(high)
    if most is not None and most < least:
        raise BadGrammar(f"{path}/{high}: it is below {low}")
    return least, most


def sequence(value: Any, path: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise BadGrammar(f"{path}: expected an array")
    return value
