"""JSON Schema: whatever the masks permit is valid, and what is usual is permitted."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammars import Grammars
from tests.backends.llm.structured.walks import VOCABULARY, permits, tokens_of, valid, walk

GRAMMARS = Grammars()


def masks(schema):
    return GRAMMARS.schema(VOCABULARY, schema, "s")


NODE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
    "$ref": "#/$defs/node",
}
PETS = {
    "$defs": {
        "Cat": {
            "type": "object",
            "properties": {"kind": {"const": "cat"}, "n": {"type": "null"}},
            "required": ["kind"],
        },
        "Dog": {
            "type": "object",
            "properties": {
                "kind": {"$ref": "#/$defs/K", "default": "dog"},
                "of": {"$ref": "#/$defs/Pet"},
            },
        },
        "K": {"enum": ["dog", "wolf"]},
        "Pet": {
            "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            "discriminator": {"propertyName": "kind"},
        },
    },
    "$ref": "#/$defs/Pet",
}
SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}},
    {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object", "additionalProperties": False},
    {"type": "object"},
    {"type": "array", "items": {"enum": [1, "two", None, {"x": [1.5]}]}, "minItems": 1},
    {"type": "array", "maxItems": 2},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer"}], "items": False},
    {"type": ["string", "null"], "maxLength": 3},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": '^[a-c"\\\\]{2,3}$'},
    {"type": "string", "pattern": "b+"},
    {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^(ab|c)*é?[0-9]*$", "minLength": 3, "maxLength": 6},
    {"type": "string", "pattern": "b", "maxLength": 3},
    {"type": "string", "pattern": "^(ab|c)+", "minLength": 4},
    {"type": "string", "pattern": "^([a-z]+ )*[0-9]+$", "maxLength": 3000},
    {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
    {"type": "string", "enum": ["a", "é\n"]},
    {"type": "integer", "minimum": -12, "maximum": 120},
    {"type": "integer", "exclusiveMinimum": 7},
    {"type": "integer", "exclusiveMaximum": -7},
    {"type": "number"},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    {"type": "number", "exclusiveMinimum": -3, "maximum": 12},
    {"type": "number", "minimum": 7},
    {"type": "number", "exclusiveMaximum": 0},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}},
    {"type": "array", "prefixItems": [{"type": "null"}, True], "minItems": 2, "maxItems": 2},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"a": {"const": 1}}}]},
    {"oneOf": [{"type": "string"}, {"type": "boolean"}]},
    {"oneOf": [{"const": "a", "description": "x"}, {"enum": [1.5, "b"]}]},
    PETS,
    {"allOf": [{"type": "boolean"}], "description": "one of them changes nothing"},
    {"properties": {"a": {"type": "null"}}, "required": ["a"], "title": "T"},
    {"minItems": 2},
    True,
    NODE,
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:60])
def test_what_masks_permit_is_valid(schema):
    ended = 0
    for seed in range(12):
        text = walk(masks(schema), seed, most=150)
        if text is not None:
            ended += 1
            value = json.loads(text)
            assert valid(value, schema), text
            orjson.loads(text)  # and other readers take it too
    assert ended > 2


plain = st.sampled_from(
    [
        {"type": "string", "maxLength": 2},
        {"type": "integer", "minimum": 0, "maximum": 9},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["x", 3]},
    ]
)
schemas = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.builds(
            lambda parts, some: {
                "type": "object",
                "properties": parts,
                "required": [name for name in parts if name in some],
            },
            st.dictionaries(st.sampled_from("pqr"), inner, min_size=1),
            st.sets(st.sampled_from("pqr")),
        ),
        st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
    ),
    max_leaves=5,
)


def test_names_and_items_that_are_listed_or_matched():
    made = masks({"type": "object", "propertyNames": {"enum": ["a", "b"]}, "required": ["b"],
                  "additionalProperties": {"type": "null"}})  # fmt: skip
    assert permits(made, '{"a":null,"b":null}') and permits(made, '{"b":null}')
    assert not permits(made, '{"a":null}') and not permits(made, '{"c":null,"b":null}')
    made = masks({"type": "object", "propertyNames": {"pattern": "^x[0-9]$"}, "maxProperties": 2,
                  "minProperties": 1})  # fmt: skip
    assert permits(made, '{"x1":1,"x2":[]}')
    assert not permits(made, '{"y":1}') and not permits(made, "{}")
    assert not permits(made, '{"x1":1,"x2":2,"x3":3}')
    made = masks({"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b", "c"]}})
    assert permits(made, '["a","c"]') and permits(made, "[]") and not permits(made, '["a","a"]')
    made = masks({"uniqueItems": True, "items": {"type": "string", "enum": ["a", 1, "a"]}})
    assert permits(made, '["a"]') and not permits(made, "[1]") and not permits(made, '["a","a"]')
    made = masks({"type": "array", "uniqueItems": False, "items": {"type": "null"}})
    assert permits(made, "[null,null]")


def test_a_tag_is_given_though_it_has_a_default():
    made = masks(PETS)
    assert permits(made, '{"kind":"dog","of":{"kind":"wolf","of":{"kind":"cat"}}}')
    assert permits(made, '{"kind":"cat","n":null}')
    assert not permits(made, "{}") and not permits(made, '{"kind":"cat","of":{}}')


@settings(max_examples=40, deadline=None)
@given(schema=schemas, seed=st.integers(0, 1000))
def test_any_schema_of_what_is_supported(schema, seed):
    text = walk(masks(schema), seed, most=250)
    assert text is None or valid(json.loads(text), schema)


@settings(max_examples=30, deadline=None)
@given(low=st.integers(-1200, 1200), size=st.integers(0, 1500), number=st.integers(-3000, 3000))
def test_integers_between_bounds(low, size, number):
    schema = {"type": "integer", "minimum": low, "maximum": low + size}
    assert permits(masks(schema), str(number)) == (low <= number <= low + size)


@settings(max_examples=60, deadline=None)
@given(factor=st.sampled_from([2, 5, 7, 64]), number=st.integers(-(10**6), 10**6), data=st.data())
def test_multiples(factor, number, data):
    number = data.draw(st.sampled_from([number, number * factor]))
    bounds, inside = data.draw(st.sampled_from([
        ({}, True), ({"minimum": 0}, number >= 0), ({"exclusiveMinimum": 0}, number > 0),
        ({"maximum": 0}, number <= 0), ({"minimum": -1000, "maximum": 990}, -1000 <= number <= 990),
        ({"minimum": -(2**53) + 1, "maximum": 2**53 - 1}, True),
    ]))  # fmt: skip
    made = masks({"type": "integer", "multipleOf": factor, **bounds})
    assert permits(made, str(number)) == (inside and number % factor == 0)
    assert not permits(made, f"0{abs(number)}")


def test_bounds_beyond_what_every_reader_takes():
    """Those of zod's safe integers, and those of 64 bits."""
    made = masks({"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1})
    assert permits(made, "9007199254740991") and permits(made, "-9007199254740991")
    assert not permits(made, "9007199254740992") and not permits(made, "-9007199254740992")
    made = masks({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1})
    assert permits(made, "-9007199254740991") and not permits(made, "9223372036854775807")


@settings(max_examples=60, deadline=None)
@given(
    low=st.decimals(-30, 30, places=2),
    size=st.decimals(0, 40, places=2),
    number=st.decimals(-80, 80, places=3),
    opens=st.tuples(st.booleans(), st.booleans()),
)
def test_numbers_between_fractions(low, size, number, opens):
    high = low + size
    keys = (
        "exclusiveMinimum" if opens[0] else "minimum",
        "exclusiveMaximum" if opens[1] else "maximum",
    )
    inside = (low < number if opens[0] else low <= number) and (
        number < high if opens[1] else number <= high
    )
    try:
        made = masks({"type": "number", keys[0]: float(low), keys[1]: float(high)})
    except BadGrammar:
        assert any(opens) and size == 0
        return
    text = f"{number:f}".replace("-0.000", "0.000")
    assert permits(made, text) == inside


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_the_usual_ways_to_write_json(indent):
    value = {"a": 'x"\\\n\u00e9', "b": [1, -2.5e3, True, None], "c": {}, "d": []}
    text = json.dumps(value, indent=indent)
    assert permits(GRAMMARS.json(VOCABULARY), text)
    assert permits(masks({"type": "object"}), json.dumps(value, separators=(",", ":")))


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a":01}', '{"a":1}}', '{"a":"\\ud800"}', '{"a" :1}', "{}\n"]
)
def test_what_is_no_json_object(text):
    assert not permits(GRAMMARS.json(VOCABULARY), text)


def test_json_ends_where_its_object_does():
    ended = [walk(GRAMMARS.json(VOCABULARY), seed, hurry=0.8) for seed in range(30)]
    assert all(isinstance(json.loads(text), dict) for text in ended if text is not None)
    assert sum(text is not None for text in ended) > 15


def test_nesting_has_an_end_and_no_dead_end():
    """At the deepest level that is allowed, only what can still be closed may be opened."""
    mask = GRAMMARS.json(VOCABULARY)()
    for byte in b'{"":':
        assert not mask.accept(byte)
    depth = 0
    while ord("[") in tokens_of(mask):
        assert not mask.accept(ord("["))
        depth += 1
    assert 20 < depth < 70 and {ord("]"), ord("0")} <= set(tokens_of(mask))
    for _ in range(depth):
        assert not mask.accept(ord("]"))
    assert mask.accept(ord("}"))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a/not: this keyword"),
        ({"type": "object", "patternProperties": {}}, "#/patternProperties: this keyword"),
        ({"type": "array", "items": {"type": "strin"}}, "#/items/type: expected one of"),
        ({"type": "number", "exclusiveMinimum": 2, "maximum": 2}, "no number from 2 to 2"),
        ({"type": "integer", "minimum": "1"}, "#/minimum: expected a number"),
        ({"prefixItems": [True], "items": False, "minItems": 2}, "#/minItems: there are only 1"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no integer from 2 to 1"),
        ({"type": "number", "multipleOf": 0.25}, "#/multipleOf: supported only for integers"),
        ({"type": "integer", "multipleOf": 0.5}, "#/multipleOf: expected a whole number"),
        ({"type": "integer", "multipleOf": 101}, "#/multipleOf: supported up to 100"),
        ({"type": "integer", "multipleOf": 5, "minimum": 7}, "#/multipleOf: with bounds other"),
        ({"multipleOf": 5, "minimum": 6, "maximum": 9}, "#/multipleOf: there is no multiple"),
        ({"type": "string", "format": "iri"}, "#/format: expected one of date"),
        ({"type": "string", "pattern": "(?=x)"}, "#/pattern: look-around"),
        ({"type": "string", "pattern": "^a{4}", "maxLength": 3}, "#/pattern: no text with so"),
        ({"type": "string", "pattern": "^a{,4}$", "minLength": 5}, "#/pattern: expected a number"),
        ({"type": "string", "pattern": "^(ab){0,2}$", "minLength": 5}, "#/pattern: no text"),
        ({"type": "object", "required": ["x"]}, "#/required: 'x' is not among the properties"),
        ({"$ref": "#/$defs/x"}, "#/$ref: there is no #/$defs/x"),
        ({"$ref": "http://x"}, "only references within the schema"),
        ({"$ref": "#", "type": "object"}, "#/type: not supported beside $ref"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "#/oneOf: supported only where"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}, "#/oneOf: supported only where"),
        ({"oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {}}}]}, "#/oneOf:"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "oneOf": [{"$ref": "#/$defs/a"}, True]}, "circle"),
        ({"uniqueItems": True, "items": {"type": "string"}}, "#/uniqueItems: supported only"),
        ({"uniqueItems": True, "items": {"enum": [1, 2]}, "minItems": 1}, "#/minItems: not"),
        ({"type": "object", "minProperties": 2}, "#/minProperties: supported up to 1"),
        ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, "#/maxProperties: not supported"),
        ({"properties": {"a": {}}, "propertyNames": {"enum": ["a"]}}, "#/propertyNames: not"),
        ({"type": "object", "propertyNames": {"enum": ["a"], "pattern": "b"}}, "not supported"),
        ({"type": "object", "propertyNames": {"type": "integer"}}, "#/propertyNames: expected"),
        ({"allOf": [{}, {}]}, "#/allOf: more than one"),
        ({"anyOf": []}, "#/anyOf: expected at least one"),
        ({"enum": [1], "type": "string"}, "#/enum: no value has the type"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "#/maxItems: it is below"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no text has the form"),
        (False, "no text has the form"),
        ([], "#: expected an object or a boolean"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_path(schema, said):
    with pytest.raises(BadGrammar) as found:
        masks(schema)
    assert said in found.value.message and found.value.param == "s"


@pytest.mark.parametrize(
    ("bounds", "good", "bad"),
    [
        ({"minimum": 0}, "0 0.5 17 1000000000001", "-0.1 -1"),
        ({"minimum": 0, "maximum": 1}, "0 1 0.99999 0.0", "1.1 2 -0.5"),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, "0.1 0.00001", "0 0.0 1 1.5"),
        ({"minimum": -2, "maximum": 10}, "-2 -1.5 -0.1 0 9.9 10", "-2.1 -3 10.1 11"),
        ({"exclusiveMinimum": -2, "maximum": -1}, "-1.9 -1 -1.1", "-2 -0.9 0"),
        ({"maximum": -1}, "-1 -1.5 -2000000000", "-0.5 0"),
        ({"minimum": 2, "exclusiveMinimum": 2}, "2.1 3", "2 1"),
        ({"exclusiveMinimum": 0.5, "maximum": 99.5}, "0.50001 0.6 1 99.5 99.49", "0.5 0 99.51 100"),
        ({"minimum": 0.25, "maximum": 0.5}, "0.25 0.3 0.50000", "0.2 0.24999 0.51 0 1"),
        ({"minimum": -1.5, "exclusiveMaximum": -0.25}, "-1.5 -1 -0.3", "-1.6 -0.25 0 -0.2"),
        ({"minimum": 1e-7}, "0.00001 3", "0 0.0"),
        ({"maximum": 1e12}, "1000000000000 -5.5 0.1", "1000000000001"),
        ({"minimum": 5e9}, "5000000000 9007199254740991", "4999999999"),
    ],
)
def test_numbers_keep_to_their_bounds(bounds, good, bad):
    made = masks({"type": "number", **bounds})
    assert all(permits(made, text) for text in good.split())
    assert not any(permits(made, text) for text in bad.split())


@pytest.mark.parametrize(
    ("how", "good", "bad"),
    [
        ({"minItems": 2, "maxItems": 2}, ["[1,true]"], ["[1]", "[]", "[1,true,null]"]),
        ({"maxItems": 1}, ["[1]"], ["[1,true]"]),
        ({"minItems": 3, "items": {"type": "null"}}, ["[1,true,null]"], ["[1,true]"]),
        ({"items": {"type": "null"}}, ["[1,true]", "[1,true,null,null]"], ["[1,true,2]"]),
        ({"items": {"type": "null"}, "maxItems": 3}, ["[1,true,null]"], ["[1,true,null,null]"]),
        ({"maxItems": 0}, ["[]"], ["[1]"]),
    ],
)
def test_first_items_go_with_others_and_their_number(how, good, bad):
    first = [{"type": "integer"}, {"type": "boolean"}]
    made = masks({"type": "array", "prefixItems": first, **how})
    assert all(permits(made, text) for text in good)
    assert not any(permits(made, text) for text in bad)
