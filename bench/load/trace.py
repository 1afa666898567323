"""Recorded traces of requests: JSON lines that say when each came and what it was.

Owns the format. One object a line, in the order of `at`; empty lines and lines that begin with #
are passed over:

    {"at": 0.013, "body": {"model": "m", "messages": []}, "path": "/v1/chat/completions"}

`at`: seconds from the trace's beginning, not below the line before. `body`: JSON that is sent as it
is, or a text; `body_base64` for bytes. `method`: left out, POST with a body and GET without.
`path` and `headers` (an object of texts): left out, those of the load. Whoever replays a trace
keeps its times, whatever the answers take.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.load.spec import OWN_HEADERS

KEYS = frozenset({"at", "body", "body_base64", "path", "headers", "method"})
# Of a HEAD's answer the length stands for no body.
_METHOD = re.compile(r"(?!HEAD$)[A-Z]+")
_NAME, _VALUE = (
    re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"),
    re.compile(r"[^\0\r\n\u0100-\U0010ffff]*"),
)
_PATH = re.compile(r"/[!-~]*")


class BadTrace(ValueError):
    """The message has the file, the line and what was expected."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is None is that of the load."""

    at: float
    body: bytes | None = None
    path: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    method: str | None = None

    def line(self) -> str:
        """The request as one line of a trace."""
        found: dict[str, Any] = {"at": round(self.at, 6)}
        if self.body is not None:
            try:
                value = json.loads(self.body)
            except ValueError:
                value = ""
            if isinstance(value, str):  # which would be read as the bytes of a text
                found["body_base64"] = base64.b64encode(self.body).decode()
            else:
                found["body"] = value
        if self.path is not None:
            found["path"] = self.path
        if self.headers:
            found["headers"] = dict(self.headers)
        if self.method is not None:
            found["method"] = self.method
        return json.dumps(found, ensure_ascii=False)


def read(path: Path) -> list[Recorded]:
    """Raises BadTrace, OSError."""
    found: list[Recorded] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if text.strip() and not text.startswith("#"):
            try:
                found.append(_parse(text, found[-1].at if found else 0.0))
            except ValueError as error:
                raise BadTrace(f"{path}, line {number}: {error}") from None
    if not found:
        raise BadTrace(f"{path}: there is no request in it")
    return found


def _parse(text: str, after: float) -> Recorded:
    try:
        given = json.loads(text)
    except ValueError:
        raise ValueError("expected a JSON object") from None
    if not isinstance(given, dict):
        raise ValueError("expected a JSON object")
    if unknown := given.keys() - KEYS:
        known = ", ".join(sorted(KEYS))
        raise ValueError(f"there is no key {sorted(unknown)[0]!r}; the keys are {known}")
    at, path, headers = given.get("at"), given.get("path"), given.get("headers", {})
    if not isinstance(at, int | float) or isinstance(at, bool) or not after <= at < 1e9:
        raise ValueError(f"at: expected seconds from {after:g} on, got {at!r}")
    if path is not None and not (isinstance(path, str) and _PATH.fullmatch(path)):
        raise ValueError(f"path: expected one that begins with /, got {path!r}")
    if not isinstance(headers, dict) or not all(isinstance(v, str) for v in headers.values()):
        raise ValueError("headers: expected an object of texts")
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"headers: {name!r} cannot be sent as it is")
        if name.lower() in OWN_HEADERS:
            raise ValueError(f"headers: {name!r} is the generator's own: leave it out")
    method = given.get("method")
    if method is not None and not (isinstance(method, str) and _METHOD.fullmatch(method)):
        raise ValueError(f'method: expected one such as "GET", got {method!r}')
    return Recorded(float(at), _body(given), path, headers, method)


def _body(given: Mapping[str, Any]) -> bytes | None:
    if "body" in given and "body_base64" in given:
        raise ValueError("expected body or body_base64, not both")
    if "body_base64" in given:
        try:
            return base64.b64decode(given["body_base64"], validate=True)
        except (TypeError, binascii.Error):
            raise ValueError("body_base64: expected base64") from None
    if "body" not in given:
        return None
    body = given["body"]
    return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def part(requests: list[Recorded], index: int, count: int) -> Iterator[Recorded]:
    """Those of one of `count` processes: in turns."""
    return iter(requests[index::count])
