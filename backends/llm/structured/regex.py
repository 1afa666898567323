"""Regular expressions as grammars: the part of the usual syntax that is regular.

Owns the parser. A pattern stands for whole texts, as with `re.fullmatch`; \\d, \\w and \\s are of
ASCII. Raises BadGrammar, with the place, for what is no regular language (look-around,
back-references) or not supported (flags, word boundaries).
"""

from __future__ import annotations

from backends.llm.errors import BadGrammar
from backends.llm.structured.grammar import (
    LAST,
    NOTHING,
    Chars,
    Either,
    Form,
    Series,
    Times,
    letters,
)

MAX_NESTING = 50
MAX_REPEAT = 10_000
DIGIT = Chars.of([(0x30, 0x39)])
WORD = Chars.of([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
SPACE = letters(" \t\n\r\f\v")
ANYTHING = Chars(((0, LAST),))
DOT = ANYTHING.without([0x0A])
_CLASSES = {
    "d": DIGIT, "D": DIGIT.others(), "w": WORD, "W": WORD.others(), "s": SPACE, "S": SPACE.others(),
}  # fmt: skip
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_HEX = {"x": 2, "u": 4}


def parse_regex(pattern: str, *, search: bool = False) -> Form:
    """`search`: the pattern need match only somewhere, unless it says ^ or $, as in a JSON Schema.
    Raises BadGrammar."""
    parser = _Parser(pattern)
    form = parser.alternatives(0)
    if parser.at < len(pattern):
        raise parser.wrong("unbalanced ')'")
    if not search:
        return form
    before = NOTHING if parser.begins else Times(ANYTHING)
    after = NOTHING if parser.ends else Times(ANYTHING)
    return Series((before, form, after))


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.at = 0
        # Anchors at the pattern's ends.
        self.begins = pattern.startswith("^")
        self.ends = pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\"))) % 2

    def wrong(self, why: str) -> BadGrammar:
        return BadGrammar(f"{why} at position {self.at} of the pattern")

    def _peek(self) -> str:
        return self._pattern[self.at : self.at + 1]

    def _take(self) -> str:
        if self.at >= len(self._pattern):
            raise self.wrong("unexpected end")
        self.at += 1
        return self._pattern[self.at - 1]

    def _skip(self, text: str) -> bool:
        found = self._pattern.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def alternatives(self, depth: int) -> Form:
        if depth > MAX_NESTING:
            raise self.wrong(f"groups nest deeper than {MAX_NESTING}")
        parts = [self._series(depth)]
        while self._skip("|"):
            parts.append(self._series(depth))
        if len(parts) > 1 and depth == 0 and (self.begins or self.ends):
            raise self.wrong("an anchor holds for one alternative only; group them")
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _series(self, depth: int) -> Form:
        parts: list[Form] = []
        while self._peek() not in ("", "|", ")"):
            if self._anchor():
                self.at += 1
            else:
                parts.append(self._repeated(self._atom(depth)))
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _anchor(self) -> bool:
        """One at the pattern's end, where it says what is so anyway."""
        first, last = self.at == 0, self.at == len(self._pattern) - 1
        return (first and self._peek() == "^") or (last and self._peek() == "$")

    def _atom(self, depth: int) -> Form:
        sign = self._take()
        if sign == "(":
            self._group_head()
            form = self.alternatives(depth + 1)
            if not self._skip(")"):
                raise self.wrong("missing ')'")
            return form
        if sign == "[":
            return self._class()
        if sign == ".":
            return DOT
        if sign == "\\":
            return self._escape()
        if sign in "^$":
            self.at -= 1
            raise self.wrong(f"'{sign}' is supported only at the pattern's ends")
        if sign in "*+?{":
            self.at -= 1
            raise self.wrong(f"nothing to repeat before '{sign}'")
        return letters(sign)

    def _group_head(self) -> None:
        if not self._skip("?"):
            return
        if self._skip(":"):
            return
        if self._skip("P<") or (self._peek() == "<" and self._pattern[self.at + 1] not in "=!"):
            self._skip("<")
            while self._take() != ">":
                pass
            return
        raise self.wrong("look-around and flags are not supported:")

    def _repeated(self, form: Form) -> Form:
        while True:
            if self._skip("*"):
                bounds: tuple[int, int | None] = (0, None)
            elif self._skip("+"):
                bounds = (1, None)
            elif self._skip("?"):
                bounds = (0, 1)
            elif self._peek() == "{":
                bounds = self._bounds()
            else:
                return form
            if self._skip("?"):
                pass  # lazy: which text is found changes, which texts there are does not
            elif self._peek() == "+":
                raise self.wrong("possessive repetition is not supported")
            form = Times(form, *bounds)

    def _bounds(self) -> tuple[int, int | None]:
        self._take()
        least = self._digits()
        most: int | None = least
        if self._skip(","):
            most = self._digits() if self._peek() != "}" else None
        if not self._skip("}"):
            raise self.wrong("expected {n}, {n,} or {n,m}")
        if (most or least) > MAX_REPEAT or (most is not None and most < least):
            raise self.wrong(f"expected 0 ≤ n ≤ m ≤ {MAX_REPEAT} in {{n,m}} before")
        return least, most

    def _digits(self) -> int:
        start = self.at
        while self._peek().isdecimal() and self.at - start < 9:
            self.at += 1
        if start == self.at:
            raise self.wrong("expected a number")
        return int(self._pattern[start : self.at])

    def _escape(self) -> Chars:
        sign = self._take()
        if sign in _CLASSES:
            return _CLASSES[sign]
        if sign in _CONTROLS:
            return letters(_CONTROLS[sign])
        if sign in _HEX:
            digits = self._pattern[self.at : self.at + _HEX[sign]]
            try:
                code = int(digits, 16)
            except ValueError:
                raise self.wrong(f"expected {_HEX[sign]} hex digits") from None
            self.at += len(digits)
            return Chars(((code, code),))
        if sign.isalnum():
            self.at -= 1
            raise self.wrong(f"'\\{sign}' is not supported")
        return letters(sign)

    def _class(self) -> Chars:
        negated = self._skip("^")
        ranges: list[tuple[int, int]] = []
        first = True
        while first or self._peek() != "]":
            first = False
            low = self._member()
            if self._peek() == "-" and self._pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self._take()
                high = self._member()
                if len(low.ranges) != 1 or len(high.ranges) != 1:
                    raise self.wrong("a class cannot bound a range")
                a, b = low.ranges[0][0], high.ranges[0][0]
                if a > b:
                    raise self.wrong("a range is upside down")
                ranges.append((a, b))
            else:
                ranges += low.ranges
        self._take()
        chars = Chars.of(ranges)
        return chars.others() if negated else chars

    def _member(self) -> Chars:
        sign = self._take()
        if sign == "\\":
            return letters("\b") if self._skip("b") else self._escape()
        return letters(sign)
