"""JSON Schema as a grammar: the part of it that an answer can be held to while it is written.

Owns the translation. A mask may permit less than the schema does (properties come in the schema's
order, none that it does not list beside those that it does), never more. Raises BadGrammar, with
the path of the keyword, for what cannot be enforced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import orjson

from backends.llm.errors import BadGrammar
from backends.llm.structured import unions
from backends.llm.structured.grammar import (
    NOTHING,
    Either,
    Form,
    Grammar,
    Listed,
    Rule,
    Series,
    Text,
    Times,
)
from backends.llm.structured.json_grammar import (
    BOOLEAN,
    COLON,
    COMMA,
    INTEGER,
    NULL,
    NUMBER,
    OBJECT,
    RULES,
    STRING,
    VALUE,
    listed,
)
from backends.llm.structured.keywords import sequence, take_bounds
from backends.llm.structured.multiples import multiples
from backends.llm.structured.numbers import Bound, integers, numbers
from backends.llm.structured.strings import string_form

MAX_DEPTH = 100
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
# They say something to readers, and nothing of what is valid.
ANNOTATIONS = {
    "title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$anchor", "$comment", "contentMediaType", "contentEncoding",
    "contentSchema", "$defs", "definitions", "discriminator",
}  # fmt: skip
OF_TYPE = {
    "object": {
        "properties", "required", "additionalProperties", "propertyNames", "minProperties",
        "maxProperties",
    },
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    },
}  # fmt: skip
KNOWN = {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"}.union(*OF_TYPE.values())


def schema_grammar(schema: Any, prefix: str = "") -> Grammar:
    """`prefix` tells its rules from those of other schemas in a grammar. Raises BadGrammar."""
    compiler = _Compiler(schema, prefix)
    start = compiler.form(schema, "#", 0)
    return Grammar(start, {**RULES, **compiler.rules})


class _Compiler:
    def __init__(self, root: Any, prefix: str) -> None:
        self._root, self._prefix = root, prefix
        self.rules: dict[str, Form] = {}

    def form(self, schema: Any, path: str, depth: int) -> Form:
        if depth > MAX_DEPTH:
            raise BadGrammar(f"{path}: schemas nest deeper than {MAX_DEPTH}")
        if schema is True:
            return VALUE
        if schema is False:
            return Either(())
        if not isinstance(schema, dict):
            raise BadGrammar(f"{path}: expected an object or a boolean")
        _check_known(schema, path)
        if "$ref" in schema:
            _alone(schema, "$ref", path)
            return self._reference(schema["$ref"], f"{path}/$ref", depth)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                _alone(schema, key, path)
                return self._combined(key, schema[key], f"{path}/{key}", depth)
        if "const" in schema:
            return self._fixed([schema["const"]], schema, f"{path}/const")
        if "enum" in schema:
            return self._fixed(sequence(schema["enum"], f"{path}/enum"), schema, f"{path}/enum")
        forms = [self._typed(kind, schema, path, depth) for kind in _types(schema, path)]
        return forms[0] if len(forms) == 1 else Either(tuple(forms))

    def _typed(self, kind: str, schema: dict[str, Any], path: str, depth: int) -> Form:
        match kind:
            case "object":
                return self._object(schema, path, depth)
            case "array":
                return self._array(schema, path, depth)
            case "string":
                return string_form(schema, path)
            case "integer":
                return _integer(schema, path)
            case "number":
                return _number(schema, path)
            case "boolean":
                return BOOLEAN
            case "null":
                return NULL
        return VALUE

    def _reference(self, name: Any, path: str, depth: int) -> Form:
        return self._rule(self._prefix + str(name), self._found(name, path), str(name), depth)

    def _rule(self, rule: str, schema: Any, path: str, depth: int) -> Form:
        if rule not in self.rules:
            self.rules[rule] = VALUE  # until it is known: it may refer to itself
            self.rules[rule] = self.form(schema, path, depth + 1)
        return Rule(rule)

    def _found(self, name: Any, path: str) -> Any:
        """What the reference refers to."""
        if not isinstance(name, str) or not name.startswith("#"):
            raise BadGrammar(f"{path}: only references within the schema are supported")
        found = self._root
        for part in name.removeprefix("#").removeprefix("/").split("/") if name != "#" else ():
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                raise BadGrammar(f"{path}: there is no {name}")
            found = found[key]
        return found

    def _resolved(self, schema: Any, path: str) -> Any:
        """The same without a reference at its head."""
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = self._found(schema["$ref"], f"{path}/$ref")
        raise BadGrammar(f"{path}: the references lead in a circle")

    def _combined(self, key: str, found: Any, path: str, depth: int) -> Form:
        parts = sequence(found, path)
        if not parts:
            raise BadGrammar(f"{path}: expected at least one schema")
        if key == "allOf" and len(parts) > 1:
            raise BadGrammar(f"{path}: more than one schema is not supported")
        if key == "oneOf" and len(parts) > 1:
            return self._one_of(parts, path, depth)
        forms = [self.form(part, f"{path}/{at}", depth + 1) for at, part in enumerate(parts)]
        return Either(tuple(forms))

    def _one_of(self, parts: Sequence[Any], path: str, depth: int) -> Form:
        found = [self._resolved(part, f"{path}/{at}") for at, part in enumerate(parts)]
        known = all(isinstance(part, dict) for part in found)
        name = None
        if not known or not unions.differ(found):
            name = unions.tag(found, lambda inner: self._resolved(inner, path)) if known else None
            if name is None:
                raise BadGrammar(
                    f"{path}: supported only where the alternatives differ in type or in a "
                    "property's constant; use anyOf"
                )
        return Either(
            tuple(
                self._with(name, part, whole, f"{path}/{at}", depth + 1)
                for at, (part, whole) in enumerate(zip(parts, found, strict=True))
            )
        )

    def _with(self, name: str | None, schema: Any, whole: Any, path: str, depth: int) -> Form:
        """The schema, `whole` without its reference, with that property always given: a tag that
        is left out tells nothing apart, whatever its default."""
        required = whole.get("required", [])
        if name is None or not isinstance(required, list) or name in required:
            return self.form(schema, path, depth)
        tagged = {**whole, "required": [*required, name]}
        if "$ref" not in schema:
            return self.form(tagged, path, depth)
        rule = f"{self._prefix}{schema['$ref']} with {name}"
        return self._rule(rule, tagged, str(schema["$ref"]), depth)

    def _fixed(self, values: Sequence[Any], schema: dict[str, Any], path: str) -> Form:
        _alone(schema, path.rpartition("/")[2], path.rpartition("/")[0], "type")
        types = _types(schema, path) if "type" in schema else TYPES
        good = [value for value in values if any(_is(value, kind) for kind in types)]
        if not good:
            raise BadGrammar(f"{path}: no value has the type")
        return Either(tuple(Text(orjson.dumps(value).decode()) for value in good))

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> Form:
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise BadGrammar(f"{path}/properties: expected an object")
        others, names = schema.get("additionalProperties", True), schema.get("propertyNames", True)
        if names is not True:
            if properties:
                raise BadGrammar(f"{path}/propertyNames: not supported beside properties")
            names = self._resolved(names, f"{path}/propertyNames")
            listed_names = names.get("enum") if isinstance(names, dict) else None
            if isinstance(listed_names, list):
                _alone(names, "enum", f"{path}/propertyNames", "type")
                if names.get("type", "string") != "string":
                    raise BadGrammar(f"{path}/propertyNames/type: expected string")
                properties = {name: others for name in listed_names if isinstance(name, str)}
        required = sequence(schema.get("required", []), f"{path}/required")
        for wanted in required:
            if wanted not in properties:
                raise BadGrammar(f"{path}/required: {wanted!r} is not among the properties")
        least, most = take_bounds(schema, "minProperties", "maxProperties", path)
        if not properties:
            return self._map(others, names, (least, most), path, depth)
        if least > len(required) or (most is not None and most < len(properties)):
            word = "minProperties" if least > len(required) else "maxProperties"
            raise BadGrammar(f"{path}/{word}: not supported where properties may be left out")
        pairs = []
        for name, inner in properties.items():
            value = self.form(inner, f"{path}/properties/{name}", depth + 1)
            key = Text(orjson.dumps(name).decode())
            pairs.append((Series((key, COLON, value)), name in required))
        return listed("{", Listed(tuple(pairs), COMMA), "}")

    def _map(
        self, others: Any, names: Any, bounds: tuple[int, int | None], path: str, depth: int
    ) -> Form:
        """An object of any names, or of those that `names` permits."""
        least, most = bounds
        if least > 1:
            # A name may come twice, and readers take it once.
            raise BadGrammar(f"{path}/minProperties: supported up to 1 where names are free")
        if others is False:
            if least:
                raise BadGrammar(f"{path}/minProperties: no property is permitted")
            return listed("{", NOTHING, "}")
        if others is True and names is True and bounds == (0, None):
            return OBJECT
        name: Form = STRING
        if names is not True:
            if not isinstance(names, dict) or names.get("type", "string") != "string":
                raise BadGrammar(f"{path}/propertyNames: expected a schema of strings")
            name = self.form({**names, "type": "string"}, f"{path}/propertyNames", depth + 1)
        value = self.form(others, f"{path}/additionalProperties", depth + 1)
        return listed("{", Times(Series((name, COLON, value)), least, most, COMMA), "}")

    def _distinct(self, schema: dict[str, Any], bounds: tuple[int, int | None], path: str) -> Form:
        """An array without equal items: those of an enum, in its order."""
        items = self._resolved(schema.get("items"), f"{path}/items")
        values = items.get("enum") if isinstance(items, dict) else None
        if "prefixItems" in schema or not isinstance(values, list):
            raise BadGrammar(f"{path}/uniqueItems: supported only where the items are an enum's")
        kept: list[Any] = []
        for value in values:
            if all(unions.differ([{"const": value}, {"const": other}]) for other in kept):
                kept.append(value)
        types = _types(items, f"{path}/items") if "type" in items else TYPES
        forms = [
            self._fixed([value], items, f"{path}/items/enum")
            for value in kept
            if any(_is(value, kind) for kind in types)
        ]
        least, most = bounds
        if least or (most is not None and most < len(forms)):
            key = "minItems" if least else "maxItems"
            raise BadGrammar(f"{path}/{key}: not supported beside uniqueItems")
        return listed("[", Listed(tuple((form, False) for form in forms), COMMA), "]")

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> Form:
        least, most = take_bounds(schema, "minItems", "maxItems", path)
        unique = schema.get("uniqueItems", False)
        if not isinstance(unique, bool):
            raise BadGrammar(f"{path}/uniqueItems: expected true or false")
        if unique and (most is None or most > 1):
            return self._distinct(schema, (least, most), path)
        first = sequence(schema.get("prefixItems", []), f"{path}/prefixItems")
        items = schema.get("items", True)
        if not first:
            item = self.form(items, f"{path}/items", depth + 1)
            return listed("[", Times(item, least, most, COMMA), "]")
        forms = [
            self.form(part, f"{path}/prefixItems/{at}", depth + 1) for at, part in enumerate(first)
        ][:most]
        parts: list[Form] = [Listed(tuple((form, True) for form in forms), COMMA)]
        # More than the first ones only where something is said of them.
        more = None if most is None else most - len(forms)
        wanted = max(least - len(forms), 0)
        if wanted and items is False:
            raise BadGrammar(f"{path}/minItems: there are only {len(forms)} items")
        if more != 0 and (wanted or isinstance(items, dict)):
            item = self.form(items, f"{path}/items", depth + 1)
            tail = Series((COMMA, Times(item, max(wanted, 1), more, COMMA)))
            parts.append(tail if wanted else Times(tail, 0, 1))
        return listed("[", Series(tuple(parts)) if forms else NOTHING, "]")


def _integer(schema: dict[str, Any], path: str) -> Form:
    least, most = _limits(schema, path)
    low = high = None
    if least is not None:
        low = math.floor(least.value) + 1 if least.open else math.ceil(least.value)
    if most is not None:
        high = math.ceil(most.value) - 1 if most.open else math.floor(most.value)
    factor = schema.get("multipleOf", 1)
    if type(factor) not in (int, float) or factor <= 0 or not float(factor).is_integer():
        raise BadGrammar(f"{path}/multipleOf: expected a whole number above 0")
    if factor != 1:
        try:
            return multiples(int(factor), low, high)
        except BadGrammar as error:
            raise BadGrammar(f"{path}/multipleOf: {error.message}") from error
    return INTEGER if low is None and high is None else integers(low, high)


def _number(schema: dict[str, Any], path: str) -> Form:
    if "multipleOf" in schema:
        raise BadGrammar(f"{path}/multipleOf: supported only for integers")
    low, high = _limits(schema, path)
    return NUMBER if low is None and high is None else numbers(low, high)


def _limits(schema: dict[str, Any], path: str) -> tuple[Bound | None, Bound | None]:
    found: dict[str, Bound] = {}
    for key in OF_TYPE["integer"] & schema.keys() - {"multipleOf"}:
        value = schema[key]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise BadGrammar(f"{path}/{key}: expected a number")
        found[key] = Bound(Decimal(repr(value)), key.startswith("exclusive"))
    # Of equal bounds the open one is the narrower.
    lows = [found[key] for key in ("minimum", "exclusiveMinimum") if key in found]
    highs = [found[key] for key in ("maximum", "exclusiveMaximum") if key in found]
    return (
        max(lows, default=None),
        min(highs, key=lambda bound: (bound.value, not bound.open), default=None),
    )


def _check_known(schema: dict[str, Any], path: str) -> None:
    for key in schema:
        if key not in KNOWN and key not in ANNOTATIONS:
            raise BadGrammar(f"{path}/{key}: this keyword is not supported")


def _alone(schema: dict[str, Any], key: str, path: str, *beside: str) -> None:
    for other in schema:
        if other != key and other not in ANNOTATIONS and other not in beside:
            raise BadGrammar(f"{path}/{other}: not supported beside {key}")


def _types(schema: dict[str, Any], path: str) -> Sequence[str]:
    found = schema.get("type")
    if found is None:
        # What it says holds for values of one type: an answer of that type fits.
        return [kind for kind, keys in OF_TYPE.items() if keys & schema.keys()][:1] or ["any"]
    kinds = [found] if isinstance(found, str) else sequence(found, f"{path}/type")
    for kind in kinds:
        if kind not in TYPES:
            raise BadGrammar(f"{path}/type: expected one of {', '.join(TYPES)}")
    return kinds


def _is(value: Any, kind: str) -> bool:
    kinds: Mapping[str, bool] = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": type(value) in (int, float),
        "integer": type(value) is int,
    }
    return kinds[kind]
