"""JSON as a grammar: what every value may look like.

Owns the forms that schemas are made of. Narrower than the standard where that keeps answers sane:
white space is at most a line's indentation, numbers have so many digits that every reader takes
them, and no escape is half of a surrogate pair.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.llm.structured.grammar import (
    LAST,
    SURROGATES,
    Chars,
    Either,
    Form,
    Grammar,
    Machine,
    Rule,
    Series,
    Text,
    Times,
    letters,
    maybe,
)

DIGIT, HEX = letters("0123456789"), letters("0123456789abcdefABCDEF")
NATURAL = Either((Text("0"), Series((letters("123456789"), Times(DIGIT, 0, 15)))))
INTEGER = Series((maybe(Text("-")), NATURAL))
NUMBER = Series(
    (
        INTEGER,
        maybe(Series((Text("."), Times(DIGIT, 1, 16)))),
        maybe(Series((letters("eE"), maybe(letters("+-")), Times(DIGIT, 1, 2)))),
    )
)
SPACE = maybe(Either((Text(" "), Series((Text("\n"), Times(letters(" \t"), 0, 24))))))
BOOLEAN, NULL = Either((Text("true"), Text("false"))), Text("null")

_SHORT = {
    0x22: '\\"',
    0x5C: "\\\\",
    0x08: "\\b",
    0x0C: "\\f",
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
}
_PLAIN = Chars.of([(0x20, LAST)]).without([0x22, 0x5C, *range(SURROGATES[0], SURROGATES[1] + 1)])
_UNICODE = Either(
    (
        Series((letters("0123456789abcefABCEF"), HEX, HEX, HEX)),
        Series((letters("dD"), letters("01234567"), HEX, HEX)),
    )
)
CHAR = Either(
    (_PLAIN, Series((Text("\\"), Either((letters('"\\/bfnrt'), Series((Text("u"), _UNICODE)))))))
)
STRING = Series((Text('"'), Times(CHAR), Text('"')))


def listed(opening: str, items: Form, closing: str) -> Form:
    """Items between brackets, with white space where it is usual; `items` may be nothing."""
    return Series((Text(opening), SPACE, items, SPACE, Text(closing)))


COMMA = Series((Text(","), SPACE))
COLON = Series((Text(":"), SPACE))
VALUE, OBJECT, ARRAY = Rule("value"), Rule("object"), Rule("array")
RULES: Mapping[str, Form] = {
    "value": Either((OBJECT, ARRAY, STRING, NUMBER, BOOLEAN, NULL)),
    "object": listed("{", Times(Series((STRING, COLON, VALUE)), between=COMMA), "}"),
    "array": listed("[", Times(VALUE, between=COMMA), "]"),
}


def json_object() -> Grammar:
    return Grammar(OBJECT, RULES)


def escaped(form: Form) -> Form:
    """The same texts as they stand inside a JSON string."""
    match form:
        case Chars():
            special = [code for code in [*range(0x20), 0x22, 0x5C] if form.has(code)]
            spelt = [Text(_SHORT.get(code) or f"\\u{code:04x}") for code in special]
            return Either((form.without(special), *spelt))
        case Series(parts):
            return Series(tuple(map(escaped, parts)))
        case Either(parts):
            return Either(tuple(map(escaped, parts)))
        case Times(part, least, most, None):
            return Times(escaped(part), least, most)
        case Machine(moves, ends):
            written = tuple(tuple((escaped(part), to) for part, to in own) for own in moves)
            return Machine(written, ends)
        case Text(""):
            return form
    raise AssertionError(f"a regex has no {form}")
