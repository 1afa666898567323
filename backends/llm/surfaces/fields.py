"""Reads the fields of a JSON body, each once and each checked.

Owns the wording of what is wrong with a field. Invariant: after `done`, every field of the body was
read; null is the same as absent, as in OpenAI's API.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from backends.llm.errors import BadRequest, MissingField, UnknownField, UnsupportedField

T = TypeVar("T")
D = TypeVar("D")


class Kind(NamedTuple, Generic[T]):
    """`check` says whether a value is right."""

    expected: str
    check: Callable[[Any], bool]


def whole(least: int, most: int) -> Kind[int]:
    return Kind(
        f"an integer from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float, most: float) -> Kind[float]:
    return Kind(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def one_of(*names: str) -> Kind[str]:
    return Kind(f"one of {', '.join(names)}", lambda value: value in names)


def list_of(kind: Kind[T], most: int) -> Kind[list[T]]:
    return Kind(
        f"a list of at most {most}, each {kind.expected}",
        lambda value: (
            isinstance(value, list) and len(value) <= most and all(map(kind.check, value))
        ),
    )


FLAG: Kind[bool] = Kind("true or false", lambda value: isinstance(value, bool))
TEXT: Kind[str] = Kind("a string", lambda value: isinstance(value, str))
TABLE: Kind[dict[str, Any]] = Kind("an object", lambda value: isinstance(value, dict))
LIST: Kind[list[Any]] = Kind("an array", lambda value: isinstance(value, list))
ANY: Kind[Any] = Kind("any value", lambda value: True)
POSITIVE: Kind[float] = Kind(
    "a number above 0",
    lambda value: type(value) in (int, float) and value > 0 and math.isfinite(value),
)


class Absent(NamedTuple):
    """A field of an API that is not here. `harmless`: values that ask for nothing."""

    reason: str
    harmless: tuple[Any, ...] = ()


class Fields:
    def __init__(self, body: Any, path: str = "") -> None:
        """`path` names the body in messages: empty for a request's own. Raises BadRequest."""
        if not isinstance(body, dict):
            what = f"{path}: expected" if path else "the body must be"
            raise BadRequest(f"{what} a JSON object", param=path or None)
        self._body: dict[str, Any] = body
        self._path = path
        self._left = {name for name, value in body.items() if value is not None}

    def take(self, name: str, kind: Kind[T], default: D) -> T | D:
        """Raises BadRequest."""
        self._left.discard(name)
        value = self._body.get(name)
        if value is None:
            return default
        if not kind.check(value):
            raise self.wrong(name, f"expected {kind.expected}, got {_short(value)}")
        checked: T = value
        return checked

    def need(self, name: str, kind: Kind[T]) -> T:
        """Raises MissingField or BadRequest."""
        if self._body.get(name) is None:
            param = self.named(name)
            raise MissingField(f"Missing required parameter: '{param}'.", param=param)
        value = self.take(name, kind, None)
        assert value is not None
        return value

    def has(self, name: str) -> bool:
        return self._body.get(name) is not None

    def accept(self, names: Iterable[str]) -> None:
        """Fields that mean nothing here by their definition."""
        self._left.difference_update(names)

    def refuse(self, name: str, reason: str, *harmless: Any) -> None:
        """Fields of the API that this replica does not have, unless the value asks for nothing."""
        self._left.discard(name)
        value = self._body.get(name)
        if value is not None and value not in harmless:
            param = self.named(name)
            raise UnsupportedField(f"'{param}' is not supported: {reason}.", param=param)

    def refuse_all(self, absent: Mapping[str, Absent]) -> None:
        for name, (reason, harmless) in absent.items():
            self.refuse(name, reason, *harmless)

    def done(self) -> None:
        """Raises UnknownField for what nobody has read."""
        if self._left:
            param = self.named(min(self._left))
            raise UnknownField(f"Unknown parameter: '{param}'.", param=param)

    def named(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def wrong(self, name: str, message: str) -> BadRequest:
        param = self.named(name)
        return BadRequest(f"Invalid value for '{param}': {message}.", param=param)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
