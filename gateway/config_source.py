"""A configuration's text with what overrides it, and the reading of its tables into dataclasses.

Owns where each value came from, so that every problem names its file and line, its variable or its
flag. It knows no key by itself: dataclass fields made with `option`, `table` and `tables` say what
may stand where. Invariant: a key that no field names is a problem, never ignored.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from gateway.config_lines import Place, key_lines, line_of
from gateway.config_options import File, Option, absolute

PREFIX = "PENSTOCK_"


def table(cls: type) -> Any:
    """A field that is one table of the file; left out, every key of it has its default."""
    return field(metadata={"table": cls}, default_factory=cls)


def tables(cls: type) -> Any:
    """A field that is an array of tables."""
    return field(metadata={"tables": cls}, default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong: `origin` is file:line, a variable or a flag; `expected` says what to do."""

    origin: str
    line: int | None
    key: str
    expected: str

    def __str__(self) -> str:
        return (
            f"{self.origin}: {self.key}: {self.expected}"
            if self.key
            else (f"{self.origin}: {self.expected}")
        )


class ConfigError(Exception):
    """The configuration cannot be used; `problems` are all that was found, at least one."""

    def __init__(self, file: Path, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.file, self.problems = file, tuple(problems)
        self.line, self.key = problems[0].line, problems[0].key
        self.expected = problems[0].expected


class Source:
    """`shown` is the path as the user gave it; relative files are found from `path`'s folder."""

    def __init__(self, text: str, path: Path, *, check_files: bool) -> None:
        self._shown, self._base = path, path.resolve().parent
        self._check_files = check_files
        self._origins: dict[Place, str] = {}
        self._problems: list[Problem] = []
        try:
            self.tree: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = re.search(r"\(at line (\d+), column \d+\)", str(error))
            line = int(found[1]) if found else text.count("\n") + 1
            message = str(error).removesuffix(found[0]).strip() if found else str(error)
            problem = Problem(
                origin=f"{path}:{line}", line=line, key="", expected=f"this is not TOML: {message}"
            )
            raise ConfigError(path, [problem]) from error
        self._lines = key_lines(text)

    # ------------------------------------------------------------------------------- problems

    def report(self, place: Place, expected: str) -> None:
        line = None
        origin = self._origins.get(place)
        if origin is None:
            line = line_of(self._lines, place)
            origin = f"{self._shown}:{line}"
        self._problems.append(Problem(origin=origin, line=line, key=_key(place), expected=expected))

    def refuse_if_wrong(self) -> None:
        if self._problems:
            raise ConfigError(self._shown, self._problems)

    # ------------------------------------------------------------------------------ overrides

    def apply_environment(self, cls: type, environ: Mapping[str, str]) -> None:
        """`PENSTOCK_SERVER__WORKERS=2`: two underscores between the parts of a key.

        Variables without them are not ours: container platforms set such (PENSTOCK_PORT …).
        """
        for name in sorted(environ):
            if name.startswith(PREFIX) and "__" in name:
                parts = name.removeprefix(PREFIX).lower().split("__")
                self._override(cls, parts, environ[name], f"environment variable {name}")

    def apply_flags(self, cls: type, overrides: Iterable[str]) -> None:
        """`server.workers=2`, `models.digits.slo_ms=50`: elements by name or by position."""
        for override in overrides:
            key, equals, text = override.partition("=")
            parts = _split(key.strip())
            origin = f"--set {override}"
            if not equals or not key.strip():
                self._problem(origin, "", "expected KEY=VALUE, such as server.workers=2")
            else:
                self._override(cls, parts, text.strip(), origin)

    def _override(self, cls: type, parts: Sequence[str], text: str, origin: str) -> None:
        place: Place = ()
        raw = self.tree
        left = list(parts)
        while left:
            part = left.pop(0)
            known = {item.name: item for item in fields(cls)}
            meta = known[part].metadata if part in known else {}
            if not meta:
                self._problem(origin, _key((*place, part)), unknown(part, known))
                return
            place = (*place, part)
            if "option" in meta and not left:
                raw[part] = meta["option"].from_text(text)
                self._origins[place] = origin
                return
            if "option" in meta:
                self._problem(origin, ".".join(parts), f'"{_key(place)}" has no keys')
                return
            if "table" in meta:
                cls, raw = meta["table"], raw.setdefault(part, {})
                continue
            elements = raw.get(part, [])
            index = _element(elements, left.pop(0)) if left else None
            if index is None:
                names = ", ".join(_names(elements)) or "none"
                wrong = f"expected the name of one of {part} after it: {names}"
                self._problem(origin, ".".join(parts), wrong)
                return
            cls, raw, place = meta["tables"], elements[index], (*place, index)
        self._problem(origin, ".".join(parts), "this is a table; name a key in it")

    def _problem(self, origin: str, key: str, expected: str) -> None:
        self._problems.append(Problem(origin=origin, line=None, key=key, expected=expected))

    # --------------------------------------------------------------------------------- reading

    def read(self, cls: type, raw: Any = None, place: Place = ()) -> Any:
        """An instance of `cls`, or None after a problem in this table was reported.

        A `problems()` method of the instance yields (key, what is wrong) for what no single key
        shows.
        """
        raw = self.tree if raw is None else raw
        if not isinstance(raw, dict):
            self.report(place, "expected a table")
            return None
        known = {item.name: item for item in fields(cls)}
        before = len(self._problems)
        for key in raw:
            if key not in known or not known[key].metadata:
                self.report((*place, key), unknown(key, known))
        values: dict[str, Any] = {}
        for name, item in known.items():
            if item.metadata:
                self._field(item, raw, (*place, name), values)
        if len(self._problems) > before:
            return None
        instance = cls(**values)
        if hasattr(instance, "problems"):
            for key, wrong in instance.problems():
                self.report((*place, key) if key else place, wrong)
        return instance if len(self._problems) == before else None

    def _field(self, item: Field[Any], raw: dict[str, Any], at: Place, out: dict[str, Any]) -> None:
        name, meta = item.name, item.metadata
        if "table" in meta:
            out[name] = self.read(meta["table"], raw.get(name, {}), at)
        elif "tables" in meta:
            elements = raw.get(name, [])
            if not isinstance(elements, list):
                self.report(at, f"expected an array of tables: [[{_key(at)}]]")
                return
            out[name] = tuple(
                self.read(meta["tables"], element, (*at, index))
                for index, element in enumerate(elements)
            )
        elif name in raw:
            try:
                out[name] = self._value(meta["option"], raw[name])
            except ValueError as error:
                self.report(at, str(error))
        elif item.default is MISSING:
            kind: Option = meta["option"]
            self.report(at, f"missing; expected {kind.expected}: {meta['doc']}")

    def _value(self, kind: Option, value: Any) -> Any:
        value = kind.read(value)
        if not isinstance(kind, File):
            return value
        path = absolute(value, self._base)
        if self._check_files and not path.is_file():
            raise ValueError(f'there is no file "{value}" ({path})')
        return path


def unknown(key: str, known: Iterable[str]) -> str:
    import difflib  # only when something is wrong: starting is quick

    names = sorted(known)
    near = difflib.get_close_matches(key, names, 1, 0.6)
    hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(names)}"
    return f"unknown key; {hint}"


def _key(place: Place) -> str:
    key = ""
    for part in place:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key


def _split(key: str) -> list[str]:
    """`models.digits.slo_ms` and `models[0].slo_ms` alike; names with dots in quotes."""
    parts = re.findall(r'"([^"]*)"|([^.\[\]"]+)', key)
    return [quoted or bare.strip() for quoted, bare in parts]


def _names(elements: Any) -> list[str]:
    if not isinstance(elements, list):
        return []
    return [str(element.get("name", "?")) for element in elements if isinstance(element, dict)]


def _element(elements: Any, wanted: str) -> int | None:
    """The position of the element so named; variables write other signs than letters as `_`."""
    names = _names(elements)
    for form in (str, lambda name: re.sub(r"[^a-z0-9]", "_", name.lower())):
        found = [index for index, name in enumerate(names) if form(name) == wanted]
        if found:
            return found[0]
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    return None
