"""Schemas as pydantic and zod write them: taken, and what masks permit is a value of the model."""

from __future__ import annotations

import datetime
import enum
import ipaddress
import json
import pathlib
import re
import uuid
from typing import Annotated, Any, Literal

import pydantic
import pytest
from pydantic import BaseModel, Field

from backends.llm.structured.formats import FORMATS, MATCHING
from backends.llm.structured.grammars import Grammars
from tests.backends.llm.structured.walks import VOCABULARY, permits, valid, walk

GRAMMARS = Grammars()


class Color(enum.Enum):
    red = "red"
    blue = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog", "wolf"] = "dog"
    bark: str | None = None


class Pet(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    other: Cat | Dog | None = None


class Tree(BaseModel):
    value: int
    children: Annotated[list[Tree], Field(max_length=1000)] = []


class Dates(BaseModel):
    a: datetime.date
    b: datetime.datetime
    c: datetime.time
    d: datetime.timedelta
    e: uuid.UUID


class Net(BaseModel):
    a: pydantic.AnyUrl
    b: pydantic.HttpUrl
    c: ipaddress.IPv4Address
    d: ipaddress.IPv6Address
    e: pydantic.IPvAnyAddress
    p: pathlib.Path
    pw: pydantic.SecretStr


class Numbers(BaseModel):
    c: Annotated[float, Field(gt=0.5, le=99.5)]
    d: Annotated[int, Field(ge=-5, lt=10)]


class Strings(BaseModel):
    a: Annotated[str, Field(min_length=2, max_length=5, pattern="^[a-z]+$")]
    b: bytes
    c: Annotated[str, Field(max_length=1000)]
    e: pydantic.Base64Bytes
    k: Any


class Lists(BaseModel):
    a: Annotated[list[int], Field(min_length=1, max_length=3)]
    b: Literal["a", 1, None, True]
    d: None
    t: tuple[int, str, bool]
    f: Color = Color.red
    m: dict[str, list[float]] = {}
    by: dict[Color, int] = {}
    some: Annotated[dict[str, int], Field(min_length=1, max_length=4)] = {"a": 1}
    colors: set[Color] = set()


MODELS = [Pet, Tree, Dates, Net, Numbers, Strings, Lists]


def masks(schema):
    return GRAMMARS.schema(VOCABULARY, schema, "s")


@pytest.mark.parametrize("model", MODELS)
def test_answers_are_values_of_the_model(model):
    made, ended = masks(model.model_json_schema()), 0
    for seed in range(12):
        text = walk(made, seed, most=1200, hurry=0.6)
        if text is not None:
            model.model_validate_json(text)
            ended += 1
    assert ended > 2


SAFE = {"minimum": -9007199254740991, "maximum": 9007199254740991}
(EMAIL,) = MATCHING
ZOD = [
    {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "id": {"type": "integer", **SAFE},
            "email": {"type": "string", "format": "email", "pattern": EMAIL},
            "at": {"type": "string", "format": "date-time", "pattern": (
                r"^(?:(?:\d\d[2468][048]|\d\d[13579][26]|\d\d0[48]|[02468][048]00|[13579][26]00)"
                r"-02-29|\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]"
                r"|[12]\d|30)|(?:02)-(?:0[1-9]|1\d|2[0-8])))"
                r"T(?:(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?:Z))$")},
            "url": {"type": "string", "format": "uri"},
            "role": {"type": "string", "enum": ["admin", "user"]},
            "nick": {"anyOf": [{"type": "string", "minLength": 1, "maxLength": 50},
                               {"type": "null"}]},
        },
        "required": ["id", "email", "at", "url", "role", "nick"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "shape": {"oneOf": [
                {"type": "object", "properties": {"t": {"type": "string", "const": "circle"},
                 "r": {"type": "number", "exclusiveMinimum": 0}}, "required": ["t", "r"],
                 "additionalProperties": False},
                {"type": "object", "properties": {"t": {"type": "string", "const": "dot"}},
                 "required": ["t"], "additionalProperties": False},
            ]},
            "count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        },
        "required": ["shape", "count"],
        "additionalProperties": False,
    },
]  # fmt: skip


@pytest.mark.parametrize("schema", ZOD)
def test_answers_are_values_of_zods_schema(schema):
    ended = 0
    for seed in range(12):
        text = walk(masks(schema), seed, most=1200, hurry=0.6)
        if text is not None:
            assert valid(json.loads(text), schema), text
            ended += 1
    assert ended > 2


@pytest.mark.parametrize("name", FORMATS)
def test_formats_keep_their_length_when_it_is_bounded(name):
    made = masks({"type": "string", "format": name, "maxLength": 60})
    texts = [walk(made, seed, most=200, hurry=0.6) for seed in range(8)]
    ended = [json.loads(text) for text in texts if text is not None]
    assert ended and all(len(text) <= 60 for text in ended)
    assert all(re.fullmatch(FORMATS[name], text) for text in ended)


def test_a_pattern_that_is_known_has_a_format_within_it():
    for pattern, name in MATCHING.items():
        texts = [walk(masks({"type": "string", "format": name}), seed) for seed in range(60)]
        assert sum(text is not None for text in texts) > 9
        assert all(re.search(pattern, json.loads(text)) for text in texts if text)


def test_what_is_usual_for_formats():
    for name, text in [
        ("uri", "https://en.wikipedia.org/wiki/Paris?x=1#top"), ("duration", "PT1H30M"),
        ("ipv6", "2001:db8::1"), ("ipv6", "::1"), ("hostname", "api.example.com"),
        ("email", "ada@example.org"), ("base64", "aGk="), ("path", "/etc/hosts"),
    ]:  # fmt: skip
        assert permits(masks({"type": "string", "format": name}), f'"{text}"'), text


def test_many_repetitions_are_few_nodes():
    """Too many for a copy each."""
    text = {"type": "string", "maxLength": 100}
    item = {"type": "object", "properties": {"a": text, "b": {"type": "number"}}}
    assert permits(masks({"type": "array", "items": item, "maxItems": 20}), '[{"a":"x"},{"b":1}]')
    made = masks({"type": "string", "minLength": 999, "maxLength": 1000})
    assert permits(made, f'"{"é" * 1000}"')
    assert not permits(made, f'"{"x" * 1001}"') and not permits(made, f'"{"x" * 998}"')
    made = masks({"type": "array", "items": {"type": "integer"}, "maxItems": 1000})
    assert permits(made, json.dumps([1] * 1000)) and not permits(made, json.dumps([1] * 1001))
    made = masks({"type": "object", "properties": {f"p{number}": item for number in range(20)}})
    assert permits(made, '{"p3":{"a":"x"},"p19":{"b":1}}')
