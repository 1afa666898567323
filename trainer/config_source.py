"""Reads a TOML file, environment variables and `key=value` arguments into frozen dataclasses.

Owns the walk and the messages; the meaning of each key stands with its field (`trainer.config`).
Every problem is collected, so one start shows all of them. Invariant: what is built came from known
keys only, each value as its field's `Kind` made it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, Problem

_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
Path_ = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read: `check` returns what to keep, or None where the value is wrong."""

    expected: str
    check: Callable[[Any], Any]


def whole(least: int, most: int = 2**62) -> Kind:
    def check(value: Any) -> Any:
        return value if type(value) is int and least <= value <= most else None

    return Kind(f"a whole number from {least}" + ("" if most == 2**62 else f" to {most}"), check)


def number(least: float, most: float, *, above: bool = False) -> Kind:
    def check(value: Any) -> Any:
        if type(value) not in (int, float) or not least <= value <= most:
            return None
        return None if above and value == least else float(value)

    return Kind(f"a number {'above' if above else 'from'} {least:g} up to {most:g}", check)


def choice(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda value: value if value in names else None)


def text(expected: str, pattern: str = r"(?s).+") -> Kind:
    def check(value: Any) -> Any:
        return value if isinstance(value, str) and re.fullmatch(pattern, value) else None

    return Kind(expected, check)


def parsed(expected: str, parse: Callable[[str], Any]) -> Kind:
    """Text that `parse` turns into a value; its ValueError says what is wrong."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            return None
        return parse(value)

    return Kind(expected, check)


def _size(value: Any) -> Any:
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", str(value).strip())
    unit = _UNITS.get(match[2].upper()) if match and not isinstance(value, bool) else None
    return int(match[1]) * unit if match and unit and int(match[1]) else None


def _numbers(value: Any) -> Any:
    good = isinstance(value, list) and len(value) == 2
    good = good and all(type(v) in (int, float) and 0 <= v < 1 for v in value)
    return (float(value[0]), float(value[1])) if good else None


def _wholes(value: Any) -> Any:
    good = isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value)
    return tuple(value) if good else None


def _texts(value: Any) -> Any:
    good = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
    return tuple(value) if good else None


BOOLEAN = Kind("true or false", lambda value: value if isinstance(value, bool) else None)
TABLE = Kind("a table", lambda value: dict(value) if isinstance(value, dict) else None)
SIZE = Kind('a size in bytes, such as "512 MiB"', _size)
WHOLES = Kind("whole numbers, such as [8, 8]", _wholes)
NAMES = Kind('texts, such as ["*.q_proj", "*.v_proj"]', _texts)
PAIR = Kind("two numbers from 0 to below 1, such as [0.9, 0.95]", _numbers)


def key(kind: Kind, doc: str, *, name: str = "", **default: Any) -> Any:
    """A field of a configuration; `name` is how the file writes it, where Python cannot."""
    return field(metadata={"kind": kind, "doc": doc, "name": name}, **default)


def section(cls: type) -> Any:
    """A field that is a table with keys of its own; left out, all of them have their defaults."""
    return field(metadata={"section": cls}, default=None)


def named(cls: type) -> dict[str, Any]:
    """Fields by the name that the file uses."""
    return {item.metadata.get("name") or item.name: item for item in fields(cls)}


class Source:
    """One configuration under way: the tree of values, where each came from, what is wrong."""

    def __init__(self, content: str, path: Path) -> None:
        self.path, self.problems = path, list[Problem]()
        self._content, self._origins = content, dict[Path_, tuple[str, str]]()
        try:
            self.tree: dict[str, Any] = tomllib.loads(content)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError([Problem(str(path), None, "", f"is not TOML: {error}")]) from error

    def environment(self, cls: type, environ: Mapping[str, str], prefix: str) -> None:
        """`<prefix>OPTIMIZER_LR=1e-3`: the parts of a key, joined by underscores."""
        keys = {"_".join(path).upper(): path for path in leaves(cls)}
        for name in sorted(environ):
            if not name.startswith(prefix):
                continue
            path = keys.get(name.removeprefix(prefix))
            if path is None:
                known = near(name.removeprefix(prefix), keys)
                self.problems.append(Problem(f"environment variable {name}", None, "", known))
            else:
                self._override(path, environ[name], f"environment variable {name}")

    def arguments(self, overrides: Iterable[str]) -> None:
        """`optimizer.lr=1e-3`; values as TOML writes them, text also without its quotes."""
        for override in overrides:
            name, equals, value = override.partition("=")
            path = tuple(part.strip() for part in name.split("."))
            if not equals or not all(path):
                fix = "expected KEY=VALUE, such as steps=600 or optimizer.lr=1e-3"
                self.problems.append(Problem(f"argument {override!r}", None, "", fix))
            else:
                self._override(path, value.strip(), f"argument {override!r}")

    def _override(self, path: Path_, value: str, origin: str) -> None:
        table = self.tree
        for part in path[:-1]:
            below = table.setdefault(part, {})
            if not isinstance(below, dict):
                self.problems.append(Problem(origin, None, ".".join(path), f"{part} is no table"))
                return
            table = below
        try:
            table[path[-1]] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            table[path[-1]] = value
        self._origins[path] = (origin, value)

    def build(self, cls: type[Any]) -> Any:
        """The configuration. Raises ConfigError with every problem found so far."""
        built = self._table(cls, self.tree, ())
        self.refuse()
        return built

    def refuse(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)

    def problem(self, path: Path_, fix: str) -> None:
        """Blames the most special origin: the argument or variable that set the key or its part."""
        for depth in range(len(path), 0, -1):
            if path[:depth] in self._origins:
                origin = self._origins[path[:depth]][0]
                self.problems.append(Problem(origin, None, ".".join(path), fix))
                return
        line = line_of(self._content, path)
        self.problems.append(Problem(str(self.path), line, ".".join(path), fix))

    def _table(self, cls: type[Any], raw: Mapping[str, Any], path: Path_) -> Any:
        known, values, wrong = named(cls), dict[str, Any](), len(self.problems)
        for name, value in raw.items():
            if name not in known:
                self.problem((*path, name), near(name, known))
                continue
            values[known[name].name] = self._value(known[name], value, (*path, name))
        for name, item in known.items():
            if "section" in item.metadata and name not in raw:
                values[item.name] = self._table(item.metadata["section"], {}, (*path, name))
            elif _required(item) and name not in raw:
                expected = item.metadata["kind"].expected
                self.problem((*path, name), f"missing; expected {expected}")
        return cls(**values) if len(self.problems) == wrong else None

    def _value(self, item: Any, value: Any, path: Path_) -> Any:
        below = item.metadata.get("section")
        if below is not None:
            if isinstance(value, dict):
                return self._table(below, value, path)
            self.problem(path, f"expected a table with the keys {', '.join(named(below))}")
            return None
        kind: Kind = item.metadata["kind"]
        written = self._origins[path][1] if path in self._origins else None
        try:
            found = kind.check(value)
            if found is None and written is not None:
                found = kind.check(written)  # run=2024 on a command line is text
        except ValueError as error:
            self.problem(path, f"{error}; expected {kind.expected}")
            return None
        if found is None:
            self.problem(path, f"expected {kind.expected}, got {value!r}")
        return found


def leaves(cls: type, path: Path_ = ()) -> Iterable[Path_]:
    """Every key of a configuration, as the parts of its dotted name."""
    for name, item in named(cls).items():
        if "section" in item.metadata:
            yield from leaves(item.metadata["section"], (*path, name))
        else:
            yield (*path, name)


def near(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, 1, 0.6)
    return (
        f'unknown key; did you mean "{close[0]}"?'
        if close
        else (f"unknown key; known here: {', '.join(names)}")
    )


def line_of(content: str, path: Path_) -> int | None:
    """The line on which the file writes the key, or else opens its table; None when it does not."""
    table: Path_ = ()
    opened = None
    for index, line in enumerate(content.splitlines(), 1):
        if match := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = tuple(part.strip(" \"'") for part in match[1].split("."))
        elif match := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            written = (*table, *(part.strip("\"'") for part in match[1].split(".")))
            if path[: len(written)] == written:
                return index
        if table and path[: len(table)] == table:
            opened = opened or index
    return opened


def _required(item: Any) -> bool:
    return item.default is MISSING and item.default_factory is MISSING
