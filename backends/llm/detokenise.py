"""Tokens to text as they come, equal to decoding them all at once, wherever the cuts lie.

Owns the bytes of a character that is not whole yet. Pure. Invariant: no text that was given out
ever changes, and an unfinished character is held back until it is whole or can never be.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from backends.llm.tokenizer import Tokenizer

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokeniser:
    """One choice. Bytes that are no UTF-8 become U+FFFD, as in `Tokenizer.decode`. `begins`: the
    text is one of its own (a message), not the continuation of a prompt's."""

    def __init__(self, tokenizer: Tokenizer, *, begins: bool = True) -> None:
        self._tokenizer = tokenizer
        self._decoder = _UTF8("replace")
        self._lead = tokenizer.lead if begins else b""

    def feed(self, tokens: Iterable[int], *, final: bool = False) -> str:
        """The text that is certain now; `final`: the rest, whole or not."""
        data = self._tokenizer.bytes_of(tokens)
        if self._lead and data:
            data, self._lead = data.removeprefix(self._lead), b""
        return self._decoder.decode(data, final)
