"""What the surface does beside talking: refuse handshakes, drain, count."""

from __future__ import annotations

import asyncio

import pytest

from gateway.lane import Lane
from gateway.ws import SocketLimits, WebSocketSurface
from tests.gateway.lane.fakes import Wire
from tests.gateway.oip.fakes import FakeDirectory, FakeModel
from tests.gateway.ws.fakes import Talk, client_frame, handshake, infer, text
from tests.gateway.ws.test_socket import held


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /ws HTTP/1.1\r\nhost: a\r\n\r\n", 426),
        (handshake(method="POST"), 405),
        (handshake(upgrade="h2c"), 426),
        (handshake(connection="keep-alive"), 426),
        (handshake(sec_websocket_version="12"), 426),
        (handshake(sec_websocket_key=None), 400),
        (handshake(origin="https://evil.example"), 403),
        (handshake("x-priority: high"), 400),
        (handshake("content-length: 3") + b"abc", 400),
    ],
)
async def test_what_cannot_become_a_socket_stays_http(head, status):
    surface = WebSocketSurface(FakeDirectory(FakeModel()))
    wire = Wire(Lane(surface.resolve)).send(head)
    (answer,) = wire.answers("GET")
    assert answer.status == status and b"error" in answer.body
    if status == 426:
        assert answer.headers[b"sec-websocket-version"] == b"13"
        assert answer.headers[b"upgrade"] == b"websocket"
    if status == 405:
        assert answer.headers[b"allow"] == b"GET"
    assert (surface.stats.refused, surface.stats.open) == (1, 0)
    surface.close()


async def test_other_paths_are_none_of_its_business():
    surface = WebSocketSurface(FakeDirectory())
    assert surface.resolve("GET", "/ws") is surface
    assert surface.resolve("GET", "/ws/") is surface.resolve("GET", "/") is None


async def test_the_number_of_sockets_is_bounded():
    talk = Talk(limits=SocketLimits(max_sockets=1))
    refused = Wire(talk.lane).send(handshake())
    assert refused.statuses() == [503]
    talk.transport.close()
    assert Talk(surface=talk.surface).wire.raw.startswith(b"HTTP/1.1 101")


async def test_a_drain_lets_what_runs_end_and_takes_nothing_more():
    idle = Talk(held())
    busy = Talk(idle.model, surface=idle.surface)
    busy.send(infer("a"), infer("b"))
    draining = asyncio.create_task(idle.surface.drain(30))
    assert await idle.one() == 1001
    busy.send(infer("c"))
    error = await busy.one()
    assert (error["id"], error["status"], error["code"]) == ("c", 503, "going_away")
    assert error["retryable"]
    assert Wire(busy.lane).send(handshake()).statuses() == [503]
    busy.model.release(busy.model.submitted[0])
    assert (await busy.one())["id"] == "a" and not draining.done()
    busy.model.release(busy.model.submitted[1])
    message, code = await busy.said()
    assert message["id"] == "b" and code == 1001
    await draining
    assert dict(idle.surface.stats.closed) == {1001: 2}
    assert idle.surface.stats.abandoned == 0


async def test_a_drain_ends_with_its_grace():
    talk = Talk(held()).send(infer("a"))
    stuck = Talk(talk.model, surface=talk.surface).send(infer("b"))
    stuck.transport.client_reads = False
    for _ in range(5):
        stuck.send(client_frame(9, b""), text({"type": "ping", "id": "x" * 40_000}))
        await asyncio.sleep(0)
    assert talk.surface.held > 0 and not stuck.transport.reading
    await talk.surface.drain(0.04)
    assert await talk.one() == 1001
    assert all(request.finished for request in talk.model.submitted)
    assert stuck.transport.aborted
    assert talk.surface.stats.abandoned == 2 and talk.surface.held == 0


async def test_the_counters_balance():
    talk = Talk().send(infer("a"), infer("b"))
    await talk.said()
    Talk(surface=talk.surface).transport.close()
    families = {family[0]: family[4:] for family in talk.surface.stats.families()}
    assert families["penstock_websockets_open"] == [[[], 1]]
    assert families["penstock_websockets_closed_total"] == [[["1006"], 1]]
    assert families["penstock_websocket_messages_total"] == [[["in"], 2], [["out"], 2]]
    stats = talk.surface.stats
    assert stats.opened == stats.open + sum(stats.closed.values())
