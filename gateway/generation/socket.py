"""Token streams on /ws: from a message of type generate to a call, and its pieces to deltas.

The counterpart of `reply` and of `door.call` for sockets. Each object that the replica says is one
delta, and the last one is the result. Invariant: what a slow client leaves untaken is bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.errors import BadRequest, GatewayError, SlowClient
from gateway.generation.call import LiveCall
from gateway.generation.door import Door
from gateway.generation.generate import Doors, flat
from gateway.generation.reply import Backlog, Times
from gateway.generation.terms import read_wants
from gateway.ws.messages import take_text
from gateway.ws.stream import Opener, Stream

SURFACE = "ws"


def opener(doors: Doors, backlog: Backlog) -> Opener:
    """For `WebSocketSurface(streams={"generate": …})`."""

    def open_stream(document: dict[str, Any], stream: Stream) -> None:
        document.pop("id")  # the socket's own
        model = take_text(document, "model_name")
        if model is None:
            raise BadRequest(
                "model_name is missing; it says which model to ask", param="model_name"
            )
        version = take_text(document, "model_version") or stream.asked.version
        _begin(doors.door(model), document, version, stream, backlog)

    return open_stream


def _begin(
    door: Door, document: dict[str, Any], version: str | None, stream: Stream, backlog: Backlog
) -> None:
    """Raises GatewayError."""
    pool, asked = door.pool, stream.asked
    pinned = door.pin(version)
    door.check(SURFACE, openai=False)
    body = orjson.dumps(document)
    fields: Mapping[str, Any] = flat(document)
    wants = read_wants(fields)
    estimate = pool.work.estimate(len(body), wants.limit, wants.choices)
    tenant = stream.tenant
    tokens = estimate.tokens_in + estimate.tokens_out
    visit = stream.enter(pool.name, tokens if tenant is not None and tenant.limited else 0.0)
    reply = StreamReply(stream, pool.name, backlog, pool.config.generation.unsent)
    call = LiveCall(
        pool,
        reply,
        SURFACE,
        body,
        began=stream.arrived,
        estimate=estimate,
        key=door.key(door.session_of(asked.session, fields), body, estimate),
        deadline=min(stream.deadline, stream.arrived + pool.config.call_timeout_ms / 1e3),
        priority=asked.priority if tenant is None else tenant.priority(asked.priority),
        version=pinned,
        request_id=stream.id,
        tenant="" if tenant is None else tenant.name,
        visit=visit,
    )

    def gone() -> None:
        call.gone()
        reply.gone()

    stream.on_gone = gone
    call.begin()


class StreamReply:
    """`most`: bytes that the client may leave untaken."""

    __slots__ = ("_backlog", "_behind", "_lead", "_most", "_rest", "_slow", "_stream", "begun")

    def __init__(self, stream: Stream, model: str, backlog: Backlog, most: int) -> None:
        self._stream, self._backlog, self._most = stream, backlog, most
        self._lead: dict[str, Any] = {"model_name": model}
        self.begun = False
        self._rest = b""  # the last object, of which it is not known whether more follow
        self._slow = False  # the client has not taken what was written
        self._behind = 0  # bytes written since

    def begin(self, content_type: str, version: str, replica: str, times: Times) -> None:
        self._lead |= {"model_version": version, "served_by": replica}
        if self._stream.timing:
            self._lead["timing"] = {
                "queue_ms": round(times.queue, 3),
                "first_ms": round(times.first, 3),
            }
        self._rest = b""

    def write(self, data: memoryview, *, last: bool) -> None:
        objects = [line for line in bytes(data).split(b"\n") if line]
        if last and objects:
            self._rest = objects.pop()
        for each in objects:
            self._send(each)
        if not last and (self._behind > self._most or self._backlog.bytes > self._backlog.limit):
            raise SlowClient("the client does not take its stream as fast as it is generated")

    def _send(self, delta: bytes) -> None:
        if not self.begun:
            self.begun = True
            self._stream.on_writable = self._writable
        if not self._stream.pass_on(delta):
            self._slow = True
        if self._slow:
            self._behind += len(delta)
            self._backlog.bytes += len(delta)

    def _writable(self) -> None:
        self._slow = False
        self.gone()

    def gone(self) -> None:
        """The client has left, or has caught up."""
        self._backlog.bytes -= self._behind
        self._behind = 0

    def end(self) -> None:
        self.gone()
        self._stream.end(self._lead, self._rest or b"{}")

    def fail(self, error: GatewayError, *, final: bool, said: bytes = b"") -> None:
        self.gone()
        self._stream.fail(error)

    def look(self, now: float, quiet_since: float) -> None:
        """A socket has pings of its own."""
