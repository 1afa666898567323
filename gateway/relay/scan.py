"""Finds a few top-level fields of a JSON object in its raw bytes, without parsing the rest.

The body of a chat request is mostly text: strings are skipped at the speed of a search, and nothing
is decoded but what was asked for. Works on pieces as they come and keeps none. Invariant: for valid
JSON it finds what a parser would (the tests have one as oracle); for other bytes it finds
anything or nothing, and the upstream refuses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson

# Possessive: nothing is tried twice, however the bytes look.
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_TOP = re.compile(rb'["{}\[\],:]')
_DEEP = re.compile(rb'["{}\[\]]')
_FORM_MODEL = re.compile(rb'name="?model"?\s*\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]{1,256})\r\n')
# Keys and values beyond it are not ones that we look for.
LONGEST = 1024
# Numbers and truth values are shorter.
LONGEST_WORD = 64
# Up to here parsing everything is quicker than looking.
SMALL = 16 * 1024


class FieldScan:
    """`found`: strings, numbers and truth values by name, as far as `feed` has come. `done`: the
    object has ended, the bytes are none, or `last`, the one field that was waited for, is found."""

    __slots__ = (
        "_carry",
        "_depth",
        "_key",
        "_last",
        "_string",
        "_text",
        "_wanted",
        "_word",
        "done",
        "found",
    )

    def __init__(self, wanted: Iterable[str], *, last: str | None = None) -> None:
        self._wanted = {name.encode(): name for name in wanted}
        self._last = last
        self.found: dict[str, Any] = {}
        self.done = False
        self._depth = 0
        self._string = False  # within one
        self._text: bytearray | None = None  # of the string, where it may matter
        self._key: bytes | None = None  # the last key at the top, until its value was seen
        self._word: bytearray | None = None  # what follows a wanted key, where it is no string
        self._carry = b""

    def feed(self, data: bytes) -> None:
        data, self._carry = self._carry + data if self._carry else data, b""
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._string:
                at = self._skip_string(data, at)
                continue
            match = (_TOP if self._depth <= 1 else _DEEP).search(data, at)
            if self._word is not None and len(self._word) <= LONGEST_WORD:
                stop = end if match is None else match.start()
                self._word += data[at : min(stop, at + LONGEST_WORD + 1)]
            if match is None:
                return
            at = match.end()
            self._structure(data[at - 1])

    def _skip_string(self, data: bytes, at: int) -> int:
        match = _IN_STRING.match(data, at)
        assert match is not None  # it matches nothing, too
        stop = match.end()
        if self._text is not None and len(self._text) <= LONGEST:
            self._text += data[at : min(stop, at + LONGEST + 1)]
        if stop == len(data):
            return stop
        if data[stop] == 0x5C:  # a backslash whose other half is still to come
            self._carry = data[stop:]
            return len(data)
        self._string = False
        if self._text is not None:
            self._string_ended(bytes(self._text))
        return stop + 1

    def _string_ended(self, text: bytes) -> None:
        self._text = None
        if self._key is None:
            self._key = text
        elif (name := self._wanted.get(self._key)) is not None and len(text) <= LONGEST:
            try:
                self.found[name] = orjson.loads(b'"%b"' % text)
            except orjson.JSONDecodeError:
                self.done = True
            self.done = self.done or name == self._last

    def _word_ended(self) -> None:
        word, self._word = self._word, None
        if not word or self._key is None or len(word) > LONGEST_WORD:
            return
        try:
            value = orjson.loads(word)
        except orjson.JSONDecodeError:
            return  # the upstream refuses it
        if isinstance(value, int | float):  # truth values are
            self.found[self._wanted[self._key]] = value

    def _structure(self, sign: int) -> None:
        if sign == 0x22:
            self._string, self._word = True, None
            self._text = bytearray() if self._depth == 1 else None
        elif sign in b"{[":
            self._depth, self._word = self._depth + 1, None
            self.done = self._depth == 1 and sign == 0x5B
        elif sign in b"}]":
            self._word_ended()
            self._depth -= 1
            self.done = self._depth <= 0
        elif sign == 0x2C and self._depth == 1:
            self._word_ended()
            self._key = None
        elif sign == 0x3A and self._depth == 1 and self._key in self._wanted:
            self._word = bytearray()
        elif self._depth == 0:
            self.done = True


def fields_of(body: bytes, wanted: Iterable[str]) -> dict[str, Any]:
    """The wanted fields of a whole body; empty where it is no JSON object."""
    if len(body) > SMALL:
        scan = FieldScan(wanted)
        scan.feed(body)
        return dict(scan.found)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def form_model(body: bytes) -> str | None:
    """The `model` field of a multipart form."""
    match = _FORM_MODEL.search(body)
    return None if match is None else match[1].decode("utf-8", "replace")
