"""Calls of tools as a grammar: text in which every call has the form of its tool's arguments.

Owns the translation for both ways in which models write calls: between marks, anywhere in the
text, or as the whole answer. Invariant: text beside calls cannot be taken for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import (
    LAST,
    NOTHING,
    Chars,
    Either,
    Form,
    Grammar,
    Series,
    Text,
    Times,
    letters,
    maybe,
)
from backends.llm.structured.json_grammar import COLON, COMMA, OBJECT, RULES, listed
from backends.llm.structured.schema import schema_grammar

ANYTHING = Chars(((0, LAST),))
# What `str.lstrip` takes away.
BLANK = Chars.of((code, code) for code in range(0x3001) if chr(code).isspace())
LINE = maybe(Text("\n"))


@dataclass(frozen=True, slots=True)
class Callee:
    """A tool. `parameters`: its schema, None where its arguments may be any object."""

    name: str
    parameters: Any
    param: str


@dataclass(frozen=True, slots=True)
class Writing:
    """How a model writes calls: the arguments' key, and the marks around a call; without marks a
    call is the whole answer."""

    key: str
    marks: tuple[str, str] | None


def call_grammar(
    tools: Sequence[Callee], writing: Writing, *, must: bool, most: int | None
) -> Grammar:
    """`must`: the answer is one call; otherwise text with at most `most` calls in it. Raises
    BadGrammar."""
    rules: dict[str, Form] = {}
    call = Either(tuple(_call(tool, at, writing.key, rules) for at, tool in enumerate(tools)))
    start: Form
    if writing.marks is None:
        blank = Times(BLANK)
        other = Series((BLANK.beside(letters("{")).others(), Times(ANYTHING)))
        start = call if must else Series((blank, Either((call, other, NOTHING)), blank))
    else:
        opening, closing = writing.marks
        if must:
            start = Series((Text(f"{opening}\n"), call, Text(f"\n{closing}")))
        else:
            text = text_without(opening)
            one = Series((Text(opening), LINE, call, LINE, Text(closing), text))
            start = Series((text, Times(one, 0, most)))
    return Grammar(start, {**RULES, **rules})


def _call(tool: Callee, at: int, key: str, rules: dict[str, Form]) -> Form:
    arguments: Form = OBJECT
    if tool.parameters is not None:
        try:
            made = schema_grammar(tool.parameters, prefix=f"{at} ")
        except BadGrammar as error:
            raise BadGrammar(f"{tool.param}: {error.message}", param=tool.param) from error
        arguments = made.start
        rules.update(made.rules)
    name = Text(orjson.dumps(tool.name).decode())
    parts = (Text('"name"'), COLON, name, COMMA, Text(f'"{key}"'), COLON, arguments)
    return listed("{", Series(parts), "}")


def text_without(mark: str) -> Form:
    """Texts in which the mark is nowhere. Its first character must not come again in it."""
    first = letters(mark[0])
    assert mark[0] not in mark[1:]
    begun = range(1, len(mark))
    # After `first`: as far as the mark goes on, then either `first` again or another character.
    again = Either(tuple(Series((Text(mark[1:size]), first)) for size in begun))
    leave = Either(
        tuple(
            Series((Text(mark[1:size]), first.beside(letters(mark[size])).others()))
            for size in begun
        )
    )
    end = Either(tuple(Text(mark[1:size]) for size in begun))
    other = Series((first, Times(again), leave))
    return Series(
        (Times(Either((first.others(), other))), maybe(Series((first, Times(again), end))))
    )
