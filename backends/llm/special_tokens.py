"""Names of special tokens: control tokens where a template writes them, text where a client does.

Owns the seals that stand for these names while a text is made. A seal cannot be guessed, so no text
that came from outside has one in it. Invariant: what a client typed comes to the tokenizer as it
was typed, and never as a control token.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

from backends.llm.errors import BadRequest

# Characters that stand for nothing in any text: planes 15 and 16 are for private use.
_RANDOM, _PLACE, _PLANE = 0xF0000, 0x100000, 0xFFFE
_LENGTH = 5  # random characters of a seal: 80 bits
MAX_DEPTH = 100


class Names:
    """Of special tokens, found as the tokenizer finds them: the leftmost, then the longest."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises ValueError for more names than there are seals."""
        self.all = tuple(sorted(filter(None, names), key=len, reverse=True))
        if len(self.all) > _PLANE:
            raise ValueError(f"{len(self.all)} special tokens; {_PLANE} at most")
        self.pattern = re.compile("|".join(map(re.escape, self.all)) or r"(?!)")
        self.places = {name: chr(_PLACE + place) for place, name in enumerate(self.all)}


class Seals:
    """One set of seals, one for each name: a key of its own, then the name's place."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._key = "".join(chr(_RANDOM + secrets.randbelow(_PLANE)) for _ in range(_LENGTH))

    def of(self, name: str) -> str:
        """What is no special token's name stays as it is."""
        place = self._names.places.get(name)
        return name if place is None else self._key + place

    def seal(self, text: str) -> str:
        """Each name replaced by its seal."""
        return self._names.pattern.sub(lambda found: self.of(found[0]), text)

    def seal_all(self, value: Any, param: str, depth: int = 0) -> Any:
        """The same in every string of a JSON value, those that are keys included. Raises BadRequest
        for `param` where it is nested too deeply for templates to write it."""
        if isinstance(value, str):
            return self.seal(value)
        if depth > MAX_DEPTH:
            raise BadRequest(f"'{param}' is nested deeper than {MAX_DEPTH} levels", param=param)
        if isinstance(value, dict):
            return {
                self.seal(key): self.seal_all(one, param, depth + 1) for key, one in value.items()
            }
        if isinstance(value, list):
            return [self.seal_all(one, param, depth + 1) for one in value]
        return value

    def unseal(self, text: str) -> str:
        first, *rest = text.split(self._key)
        all = self._names.all
        return first + "".join(all[ord(part[0]) - _PLACE] + part[1:] for part in rest)
