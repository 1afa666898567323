"""Kinds of configuration values: how one is read, what is said when it is wrong, its JSON Schema.

Owns single values; tables and where they come from belong to `config`. An option never guesses: a
value of another type is refused, and the message says what was expected.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


class Option:
    """`read` takes a TOML value and raises ValueError; `from_text` takes a flag's or variable's."""

    expected = ""

    def read(self, value: Any) -> Any:
        raise NotImplementedError

    def from_text(self, text: str) -> Any:
        """The TOML value that `text` writes; text that is no TOML value is a string."""
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text

    def schema(self) -> dict[str, Any]:
        raise NotImplementedError

    def refuse(self, value: Any) -> ValueError:
        return ValueError(f"expected {self.expected}, got {shown(value)}")


def shown(value: Any) -> str:
    """A TOML value as a user wrote it, cut to one readable line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:56]} …"


class Text(Option):
    """A string; `valid` refuses by raising ValueError or by answering False."""

    def __init__(
        self, expected: str = "a string", pattern: str = "", *, valid: Callable[[str], bool] = bool
    ) -> None:
        self.expected, self._pattern, self._valid = expected, pattern, valid

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(self._pattern or r"[\s\S]*", value):
            raise self.refuse(value)
        if not self._valid(value):
            raise self.refuse(value)
        return value

    def from_text(self, text: str) -> Any:
        value = super().from_text(text)
        return value if isinstance(value, str) else text

    def schema(self) -> dict[str, Any]:
        return {
            "type": "string",
            **({"pattern": f"^(?:{self._pattern})$"} if self._pattern else {}),
        }


class Choice(Text):
    def __init__(self, *names: str) -> None:
        super().__init__("one of " + ", ".join(names), valid=names.__contains__)
        self.names = names

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.names)}


class Texts(Option):
    """An array of at least one string, each matching `pattern`."""

    def __init__(self, expected: str, pattern: str = r"[\s\S]+") -> None:
        self._pattern = pattern
        self.expected = f"an array of strings: {expected}"

    def read(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise self.refuse(value)
        for item in value:
            if not isinstance(item, str) or not re.fullmatch(self._pattern, item):
                raise ValueError(f"expected {self.expected}; it contains {shown(item)}")
        return tuple(value)

    def schema(self) -> dict[str, Any]:
        items = {"type": "string", "pattern": f"^(?:{self._pattern})$"}
        return {"type": "array", "items": items, "minItems": 1}


class Flag(Option):
    expected = "true or false"

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.refuse(value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class File(Text):
    """A path; `config` makes it absolute, relative ones from the folder of the file."""

    def __init__(self) -> None:
        super().__init__("the path of a file")


class Whole(Option):
    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most
        self.expected = f"a whole number from {least} to {most}"

    def read(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(value)
        if not self.least <= value <= self.most:
            raise self.refuse(value)
        return value

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


class Number(Option):
    """A finite number, above `above` or from `least`, up to `most`."""

    def __init__(self, *, most: float, above: float | None = None, least: float = 0.0) -> None:
        self.above, self.least, self.most = above, least, most
        low = f"above {above:g}" if above is not None else f"from {least:g}"
        self.expected = f"a number {low} up to {most:g}"

    def read(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(value)
        low = value > self.above if self.above is not None else value >= self.least
        if not (low and value <= self.most):  # NaN fails here too
            raise self.refuse(value)
        return float(value)

    def schema(self) -> dict[str, Any]:
        low = (
            {"exclusiveMinimum": self.above} if self.above is not None else {"minimum": self.least}
        )
        return {"type": "number", **low, "maximum": self.most}


class Size(Option):
    """Bytes: a whole number, or a string with a unit ("64 MiB")."""

    expected = 'bytes: a whole number above 0, or a size such as "64 MiB"'

    def read(self, value: Any) -> int:
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            unit = UNITS.get(match[2].upper()) if match else None
            if match is None or unit is None:
                raise self.refuse(value)
            value = int(float(match[1]) * unit)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(value)
        return value

    def schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[KMGkmg]?[Ii]?[Bb]\s*$"}
        return {"anyOf": [{"type": "integer", "minimum": 1}, text]}


def option(kind: Option, doc: str, **default: Any) -> Any:
    """A dataclass field that a configuration file may set; without `default`, it must."""
    return field(metadata={"option": kind, "doc": doc}, **default)


def absolute(path: str, base: Path) -> Path:
    return (base / Path(path).expanduser()).resolve()
