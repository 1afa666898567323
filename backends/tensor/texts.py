"""Texts for a model that takes tokens: OpenAI's embeddings, run as batches like all others.

Owns the CALLs of a tensor replica, on the event loop's thread: a body is read, its texts become
EXECUTEs of the replica's own, and their RESULTs one reply. Texts of all clients are joined at the
intake, by length. Invariant: each call that was taken gets one terminal answer, or its gateway has
gone.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from backends.errors import BadFrame, Cancelled, Unsupported
from backends.llm.errors import (
    BadRequest,
    ContextTooLong,
    MissingField,
    UnknownField,
    UnsupportedField,
)
from backends.server import Connection
from backends.wire import (
    Buffer,
    Call,
    Decoder,
    Fault,
    Frame,
    Kind,
    Piece,
    encode,
    execute_meta,
    stream_frame,
)

# As the API has it; more would hold up the others.
MAX_TEXTS = 2048
# The fields that the API knows. `user` and the like name no part of the answer.
_FIELDS = {"model", "input", "encoding_format", "dimensions", "user", "safety_identifier"}


@dataclass(frozen=True, slots=True)
class TextInput:
    """How a text becomes `name`, an input of at most `most` tokens; what comes of it are `width`
    numbers. An EXECUTE has `rows` texts."""

    encode: Callable[[str], list[int]]
    name: str
    width: int
    most: int
    rows: int


class Owner(Protocol):
    """Who waits for the answers to EXECUTEs."""

    def send(self, buffers: Sequence[Buffer]) -> None: ...
    def fault(self, id: int, fault: Fault) -> None: ...


class Texts:
    """`take` has an EXECUTE run, for this owner, and raises BackendError where it will not; `lost`
    lets go of all that the owner waits for."""

    def __init__(self, take: Callable[[Owner, Frame], None], lost: Callable[[Owner], None]) -> None:
        self._take, self._lost = take, lost
        self._live: dict[tuple[Connection, int], _Asked] = {}

    def __len__(self) -> int:
        return len(self._live)

    def call(self, connection: Connection, frame: Frame, text: TextInput | None) -> None:
        """Raises BackendError for a call that will not be answered otherwise."""
        try:
            call = Call.from_json(frame.json())
        except (TypeError, KeyError) as error:
            raise BadFrame(f"the meta of a CALL: {error}") from error
        if call.surface != "embeddings" or text is None:
            raise Unsupported(f"this model does not answer {call.surface}")
        if (connection, frame.id) in self._live:
            raise BadFrame(f"a call with id {frame.id} is being answered on this connection")
        request = _read(frame.data, text)
        asked = _Asked(self, connection, frame.id, text, request)
        self._live[connection, frame.id] = asked
        try:
            for number, tokens in enumerate(asked.parts):
                self._take(asked, _execute(number, tokens, text, call))
        except BaseException:
            self._forget(asked)
            raise

    def cancel(self, connection: Connection, id: int) -> None:
        asked = self._live.get((connection, id))
        if asked is not None:
            self._forget(asked)
            connection.fault(id, Cancelled("cancelled by the gateway").fault())

    def lost(self, connection: Connection) -> None:
        for asked in [each for (owner, _), each in self._live.items() if owner is connection]:
            self._forget(asked)

    def ended(self, asked: _Asked) -> None:
        self._forget(asked)

    def _forget(self, asked: _Asked) -> None:
        """Nothing more of it runs that has not begun."""
        self._live.pop((asked.connection, asked.id), None)
        self._lost(asked)


@dataclass(frozen=True, slots=True)
class _Request:
    model: str
    tokens: Sequence[Sequence[int]]
    base64: bool


class _Asked:
    """One call, as the owner of its EXECUTEs: what a connection is to others."""

    def __init__(
        self, texts: Texts, connection: Connection, id: int, text: TextInput, request: _Request
    ) -> None:
        self._texts, self.connection, self.id = texts, connection, id
        self._text, self._request = text, request
        # Alike lengths together: they are padded to the longest of a batch.
        order = sorted(range(len(request.tokens)), key=lambda i: len(request.tokens[i]))
        self._places = [order[at : at + text.rows] for at in range(0, len(order), text.rows)]
        self.parts = [[request.tokens[i] for i in places] for places in self._places]
        self._found: dict[int, memoryview] = {}
        self._left = len(self.parts)

    def fault(self, id: int, fault: Fault) -> None:
        self._texts.ended(self)
        self.connection.fault(self.id, fault)

    def send(self, buffers: Sequence[Buffer]) -> None:
        """The RESULT of one of its EXECUTEs."""
        [frame] = Decoder().feed(b"".join(buffers))
        meta = frame.json()
        if meta.get("errors"):
            self.fault(frame.id, Fault.from_json(next(iter(meta["errors"].values()))))
            return
        width = 4 * self._text.width
        for row, place in enumerate(self._places[frame.id]):
            self._found[place] = frame.data[row * width : (row + 1) * width]
        self._left -= 1
        if not self._left:
            self._texts.ended(self)
            self.connection.send(self._reply(meta["version"]))

    def _reply(self, version: str) -> list[Buffer]:
        request = self._request
        count = sum(map(len, request.tokens))
        body = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": self._vector(index)}
                for index in range(len(request.tokens))
            ],
            "model": request.model,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
        data = orjson.dumps(body)
        usage = {"prompt_tokens": count, "completion_tokens": 0, "cached_tokens": 0}
        info = {"type": "application/json", "version": version, "usage": usage}
        return stream_frame([(Piece(self.id, len(data), True, info), data)])

    def _vector(self, index: int) -> str | list[float]:
        data = self._found[index]
        if self._request.base64:
            return base64.b64encode(data).decode()
        return list(struct.unpack(f"<{self._text.width}f", data))


def _execute(number: int, parts: Sequence[Sequence[int]], text: TextInput, call: Call) -> Frame:
    shapes = [(1, len(tokens)) for tokens in parts]
    alike = len(set(shapes)) == 1
    data = b"".join(struct.pack(f"<{len(tokens)}q", *tokens) for tokens in parts)
    meta = execute_meta(
        [(text.name, "INT64", (len(parts), len(parts[0]) if alike else -1))],
        [1] * len(parts),
        sizes=[len(data)],
        version=call.version,
        deadlines_ms=None if call.deadline_ms is None else [call.deadline_ms] * len(parts),
        shapes=None if alike else {text.name: shapes},
    )
    [frame] = Decoder().feed(b"".join(encode(Kind.EXECUTE, number, meta, [data])))
    return frame


def _read(data: Buffer, text: TextInput) -> _Request:
    """Raises BackendError, naming the field."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    for name in body.keys() - _FIELDS:
        raise UnknownField(f"Unknown field {name!r}.", param=name)
    if "input" not in body:
        raise MissingField("Missing required parameter: 'input'.", param="input")
    form = body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadRequest(
            f"Invalid value for 'encoding_format': expected float or base64, got {form!r}.",
            param="encoding_format",
        )
    wanted = body.get("dimensions")
    if wanted not in (None, text.width):
        raise UnsupportedField(
            f"'dimensions' must be {text.width}: this model's embeddings cannot be shortened.",
            param="dimensions",
        )
    tokens = [_tokens(each, text) for each in _inputs(body["input"])]
    return _Request(str(body.get("model", "")), tokens, form == "base64")


def _inputs(value: Any) -> list[Any]:
    """Each text, or each list of tokens."""
    if isinstance(value, str) or (isinstance(value, list) and value and _is_token(value[0])):
        return [value]
    if not isinstance(value, list) or not value:
        raise BadRequest(
            "Invalid value for 'input': expected a text, tokens, or a list of either.",
            param="input",
        )
    if len(value) > MAX_TEXTS:
        raise BadRequest(f"'input' has {len(value)} texts, at most {MAX_TEXTS}.", param="input")
    return value


def _tokens(value: Any, text: TextInput) -> list[int]:
    if isinstance(value, str):
        if not value:
            raise BadRequest("'input' cannot be an empty text.", param="input")
        tokens = text.encode(value)
    elif isinstance(value, list) and value and all(map(_is_token, value)):
        tokens = value
    else:
        raise BadRequest(
            "Invalid value for 'input': expected texts or lists of tokens.", param="input"
        )
    if len(tokens) > text.most:
        raise ContextTooLong(
            f"This model's maximum context length is {text.most} tokens, a text of 'input' has "
            f"{len(tokens)}. Please shorten it.",
            param="input",
        )
    return tokens


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
