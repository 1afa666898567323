"""Alternatives of a schema of which no value fits two: told apart by type, constant or tag.

Pure; alternatives come without references. Invariant: what it says differ, do; it may miss some.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import orjson

Schema = Mapping[str, Any]


def differ(parts: Sequence[Schema]) -> bool:
    """In their types or in the values that they list."""
    found = [(_values(part), _types(part)) for part in parts]
    return all(
        (one[0] is not None and other[0] is not None and not one[0] & other[0])
        or (one[1] is not None and other[1] is not None and not one[1] & other[1])
        for one, other in combinations(found, 2)
    )


def tag(parts: Sequence[Schema], resolved: Callable[[Any], Any]) -> str | None:
    """A property whose values tell them apart, wherever it is given."""
    tables = [part.get("properties") for part in parts]
    if not all(isinstance(table, dict) for table in tables):
        return None
    for name in tables[0] or ():
        values = [_values(resolved(table.get(name))) for table in tables if table]
        if len(values) == len(parts) and all(
            one is not None and other is not None and not one & other
            for one, other in combinations(values, 2)
        ):
            return str(name)
    return None


def _values(schema: Any) -> set[bytes] | None:
    """All that it permits, where it lists them."""
    if not isinstance(schema, Mapping):
        return None
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return {_key(value) for value in listed} if isinstance(listed, list) else None


def _types(schema: Schema) -> set[str] | None:
    listed = schema.get("type")
    kinds = [listed] if isinstance(listed, str) else listed
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        return None
    return {"number" if kind == "integer" else kind for kind in kinds}


def _key(value: Any) -> bytes:
    """Equal for equal values: 1 and 1.0 are one number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
