"""What a relayed answer has cost in tokens: reserved before, read from the answer as it passes.

Owns the reading of OpenAI's `usage`, and the request for it where the client has not made one: then
the event that answers it is taken out again. Invariant: the visit's `tokens` is at any moment what
would have to be paid if the request ended now.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson

from gateway.tenants import Visit

# A token of English text is about so many bytes; what is reserved is corrected by the answer.
BYTES_PER_TOKEN = 4.0
# Reserved of an answer whose length the client does not bound.
USUAL_ANSWER = 256.0
# More than any context; a client's own number must not overflow anything.
MOST = 1e9

_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NO_CHOICE = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_EVENT = re.compile(rb".*?(?:\n\n|\r\n\r\n|\r\r|\Z)", re.DOTALL)
_KEPT = 128  # bytes in which a total may lie across two pieces


class Reserve(NamedTuple):
    """`prompt` and `tokens`: estimates of the prompt, and of all. `body`: what is sent. `strips`:
    the answer has a usage that the client did not ask for."""

    prompt: float
    tokens: float
    body: bytes
    strips: bool = False


def reserve(body: bytes, length: int, *, complete: bool) -> Reserve:
    """`length`: the body's, where it is known. What is not all there is passed on unread."""
    prompt = max(len(body), length) / BYTES_PER_TOKEN
    try:
        document = orjson.loads(body) if complete and body[:1] == b"{" else None
    except orjson.JSONDecodeError:
        document = None  # the replica says what is wrong with it
    if not isinstance(document, dict):
        return Reserve(prompt, prompt + USUAL_ANSWER, body)
    if "messages" not in document and "prompt" not in document:
        return Reserve(prompt, prompt, body)  # embeddings and the like answer without tokens
    tokens = prompt + _most(document) * _count(document)
    options = document.get("stream_options") or {}
    if document.get("stream") is not True or not isinstance(options, dict):
        return Reserve(prompt, tokens, body)
    if options.get("include_usage"):
        return Reserve(prompt, tokens, body)
    document["stream_options"] = {**options, "include_usage": True}
    return Reserve(prompt, tokens, orjson.dumps(document), strips=True)


def _most(document: dict[str, object]) -> float:
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        value = document.get(name)
        if type(value) is int and value >= 0:
            return float(min(value, int(MOST)))
    return USUAL_ANSWER


def _count(document: dict[str, object]) -> float:
    value = document.get("n")
    return float(value) if type(value) is int and 1 <= value <= 128 else 1.0


class Meter:
    """`prompt`: its estimated tokens. Sees what goes to the client, in order."""

    __slots__ = ("_estimate", "_found", "_prompt", "_strips", "_tail", "_visit")

    def __init__(self, visit: Visit, prompt: float, *, strips: bool) -> None:
        visit.tokens = 0.0  # a request that no replica answers costs nothing
        self._visit, self._prompt, self._strips = visit, prompt, strips
        self._estimate, self._found = prompt, False
        self._tail = b""

    def whole(self, status: int, body: bytes, *, events: bool = False) -> bytes:
        """All of an answer; what of it the client gets."""
        if status >= 400:
            return body
        if events:
            return self.piece(body, events=True)
        self._visit.tokens = _last(body)  # None: what was reserved
        return body

    def keep(self) -> None:
        """Take nothing out: the client has been told how long the answer is."""
        self._strips = False

    def piece(self, data: bytes, *, events: bool) -> bytes:
        """More of an answer that is good so far; what of it the client gets. `events`: whole
        events of a stream."""
        if events:
            # One event carries about one token.
            self._estimate += data.count(b"data:")
            if _USAGE.search(data):
                self._find(data)
                if self._strips:
                    data = b"".join(e for e in _EVENT.findall(data) if not _is_usage(e))
        else:
            self._find(self._tail + data)
            self._tail = data[-_KEPT:]
        if not self._found:
            self._visit.tokens = self._estimate
        return data

    def _find(self, data: bytes) -> None:
        total = _last(data)
        if total is not None:
            self._visit.tokens, self._found = total, True


def _last(data: bytes) -> float | None:
    found = _TOTAL.findall(data)
    return min(float(found[-1]), MOST) if found else None


def _is_usage(event: bytes) -> bool:
    return bool(_NO_CHOICE.search(event)) and bool(_USAGE.search(event))
