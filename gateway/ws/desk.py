"""Requests of all sockets: from a message to a model's queue, and the answer back.

Shares parsing, rendering and statistics with HTTP's infer calls; no task, no future. Invariant:
each request that it takes leaves its socket once, with one terminal message, whatever the message,
the model or the replica do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.errors import BadRequest, GatewayError, Unsupported
from gateway.oip import Codec, Directory, InferRequest, ModelView, render_infer
from gateway.oip.infer import MAX_CACHED, check_rows, pin, signature_of, translated
from gateway.oip.parse import read_infer
from gateway.request import Answer, TensorRequest
from gateway.ws.messages import (
    Message,
    error_frame,
    result_frame,
    result_lead,
    take_asked,
    take_text,
)
from gateway.ws.stream import Opener, Stream

if TYPE_CHECKING:
    from gateway.ws.socket import Socket

# Types of the protocol that need a model which streams.
STREAMED = frozenset({"generate"})


class Desk:
    """`streams`: who answers the types of messages that ask for a stream."""

    def __init__(self, directory: Directory, streams: Mapping[str, Opener]) -> None:
        self._directory, self._streams = directory, streams
        self._codecs: dict[str, Codec] = {}
        self._leads: dict[str, bytes] = {}

    def begin(self, socket: Socket, name: str, message: Message, arrived: float, size: int) -> None:
        """Start the request `name`, which `message` of `size` bytes asks for."""
        socket.taken(size)
        try:
            if message.type == "infer":
                self._infer(socket, name, message, arrived, size)
            else:
                self._stream(socket, name, message, arrived, size)
        except Exception as raised:
            error = translated(raised)
            live = socket.live.get(name)
            if isinstance(live, TensorRequest):
                live.finish(error)
            elif isinstance(live, Stream):
                live.fail(error)
            else:
                socket.ended(name, size)
                socket.write(error_frame(name, error))

    def _infer(
        self, socket: Socket, name: str, message: Message, arrived: float, size: int
    ) -> None:
        document = message.document
        asked = take_asked(document, socket.asked)
        model = take_text(document, "model_name")
        if model is None:
            raise BadRequest(
                "model_name is missing; it says which model to ask", param="model_name"
            )
        version = take_text(document, "model_version") or asked.version
        view = self._directory.model(model)
        socket.enter(name, model)
        pinned = pin(view, version) if version else None
        codec = self._codecs.get(model)
        if codec is None or codec.signature is not view.signature:
            codec = self._compile(view)
        parsed = read_infer(document, message.rest, codec)
        if parsed.rows > 1:
            check_rows(parsed.rows, view)
        deadline = arrived + asked.deadline_s
        if parsed.timeout_us:
            deadline = min(deadline, arrived + parsed.timeout_us / 1e6)
        call = _InferCall(self, socket, name, size, model, parsed, codec)
        request = socket.live[name] = TensorRequest(
            parsed.inputs,
            parsed.rows,
            parsed.key,
            call.done,
            arrived=arrived,
            deadline=deadline,
            priority=parsed.priority or asked.priority,
            session=asked.session,
            version=pinned,
        )
        if (tenant := socket.tenant) is not None:
            request.tenant, request.priority = tenant.name, tenant.priority(request.priority)
        view.submit(request)

    def _stream(
        self, socket: Socket, name: str, message: Message, arrived: float, size: int
    ) -> None:
        opener = self._streams.get(message.type)
        if opener is None:
            if message.type in STREAMED:
                raise Unsupported("no model of this server streams an answer", param="type")
            known = ", ".join(["infer", *self._streams, "cancel", "ping"])
            raise BadRequest(
                f"type {message.type[:60]!r} is not known; the types are {known}", param="type"
            )
        if len(message.rest):
            raise BadRequest(f"a message of type {message.type} carries no tensors", param="type")
        asked = take_asked(message.document, socket.asked)
        stream = socket.live[name] = Stream(socket, name, asked, arrived, size)
        opener(message.document, stream)

    def _compile(self, view: ModelView) -> Codec:
        """On the first call, and when a model's signature has changed."""
        codec = Codec(signature_of(view))
        if len(self._codecs) >= MAX_CACHED:
            self._codecs.clear()
        self._codecs[view.name] = codec
        return codec

    def lead(self, replica: str) -> bytes:
        known = self._leads.get(replica)
        if known is None:
            if len(self._leads) >= MAX_CACHED:
                self._leads.clear()
            known = self._leads[replica] = result_lead(replica)
        return known


class _InferCall:
    """What the answer's way back needs."""

    __slots__ = ("_codec", "_desk", "_id", "_model", "_parsed", "_size", "_socket")

    def __init__(
        self,
        desk: Desk,
        socket: Socket,
        name: str,
        size: int,
        model: str,
        parsed: InferRequest,
        codec: Codec,
    ) -> None:
        self._desk, self._socket, self._id, self._size = desk, socket, name, size
        self._model, self._parsed, self._codec = model, parsed, codec

    def done(self, outcome: Answer | GatewayError) -> None:
        """The request's terminal event."""
        socket = self._socket
        socket.ended(self._id, self._size)
        if not socket.is_open:
            return
        if type(outcome) is not Answer:
            assert isinstance(outcome, GatewayError)
            socket.write(error_frame(self._id, outcome))
            return
        try:
            rendered = render_infer(self._parsed, self._model, outcome, self._codec)
        except Exception as raised:
            socket.write(error_frame(self._id, translated(raised)))
            return
        lead = self._desk.lead(outcome.replica)
        socket.write(result_frame(lead, outcome, rendered, timing=socket.timing))
