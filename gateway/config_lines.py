"""On which line each key of a TOML text stands, so that an error can point at it.

Owns no meaning: it reads only text that `tomllib` has accepted, and looks at nothing but statement
heads. A key inside an inline table is found at the line of the statement that holds it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

# Keys and, for arrays of tables, positions: ("models", 0, "replicas", 1, "weight").
Place = tuple[str | int, ...]

_BLANK = re.compile(r"(?:\s|#[^\n]*)*")
_KEY_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_KEY = re.compile(rf"{_KEY_PART}(?:[ \t]*\.[ \t]*{_KEY_PART})*")
# What can stand in a value, longest first, so that quotes and brackets in strings do not count.
_VALUE = re.compile(
    r'"""(?:[^\\]|\\[\s\S])*?"{3,5}'
    r"|'''[\s\S]*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*|[\[{]|[\]}]|\n|[^\"'\#\[\]{}\n]+"
)
_CLOSING = re.compile(r"[ \t\]]*")


def key_lines(text: str) -> dict[Place, int]:
    """Every table and key with its line, counted from 1."""
    lines: dict[Place, int] = {(): 1}
    positions: dict[Place, int] = {}
    table: Place = ()
    for line, brackets, keys in _statements(text):
        if brackets == 2:
            name = (*_locate(keys[:-1], positions), keys[-1])
            positions[name] = positions.get(name, -1) + 1
            table = (*name, positions[name])
        elif brackets == 1:
            table = _locate(keys, positions)
        place = table if brackets else (*table, *keys)
        lines.setdefault(place, line)
    return lines


def line_of(lines: dict[Place, int], place: Place) -> int:
    """The line of `place`, or of the nearest thing around it that has one."""
    while place not in lines:
        place = place[:-1]
    return lines[place]


def _locate(keys: Place, positions: dict[Place, int]) -> Place:
    """A table's keys with the position of the newest element after each array of tables."""
    place: Place = ()
    for key in keys:
        place = (*place, key)
        if place in positions:
            place = (*place, positions[place])
    return place


def _statements(text: str) -> Iterator[tuple[int, int, Place]]:
    """(line, brackets around the head: 0 for a key, 1 or 2 for a table, its keys) in order."""
    at, end = _skip(_BLANK, text, 0), len(text)
    line, counted = 1, 0
    while at < end:
        line, counted = line + text.count("\n", counted, at), at
        brackets = 2 if text.startswith("[[", at) else int(text[at] == "[")
        match = _KEY.search(text, at)
        if match is None:  # no TOML; tomllib has refused it already
            return
        yield line, brackets, _keys(match[0])
        at = _skip_value(text, match.end())
        at = _skip(_BLANK, text, at)


def _skip_value(text: str, at: int) -> int:
    """The end of the statement: the first newline outside of strings and brackets."""
    depth = 0
    at = _skip(_CLOSING, text, at)  # the head's own brackets
    for match in _VALUE.finditer(text, at):
        token = match[0]
        if token == "\n" and depth <= 0:
            return match.end()
        depth += (token in ("[", "{")) - (token in ("]", "}"))
    return len(text)


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _keys(head: str) -> Place:
    """The parts of a dotted key; tomllib itself takes it apart."""
    keys: Place = ()
    tree = tomllib.loads(f"{head} = 0")
    while isinstance(tree, dict):
        key, tree = next(iter(tree.items()))
        keys = (*keys, key)
    return keys
