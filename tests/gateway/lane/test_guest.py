"""The hand-over seen from close by: an application that does what the test says."""

from __future__ import annotations

import asyncio

from gateway.lane import Limits
from tests.gateway.lane.fakes import Clock, Later, Wire, make_lane, request

APP = request("POST", "/app", b"abc")
X = request("POST", "/x", b"abc")


class FakeApp(asyncio.Protocol):
    """As much of aiohttp's protocol as the hand-over looks at."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self.received = b""
        self.events: list[str] = []

    def rest(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._waiter = None

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")

    def close(self) -> None:
        self.events.append("close")

    def keep_alive(self, value: bool) -> None:
        self.events.append("stop timer")


async def test_a_connection_whose_writing_is_paused_stays_until_it_is_resumed(monkeypatch):
    monkeypatch.setattr("gateway.lane.handover.FIRST_LOOK_S", 0.0)
    monkeypatch.setattr("gateway.lane.handover.LONGEST_LOOK_S", 0.0)
    app, lane_handler = FakeApp(), Later()
    wire = Wire(make_lane(None, hand_over=lambda: app, x=lane_handler)).send(APP)
    wire.transport.protocol.pause_writing()
    app.rest()
    wire.send(X)
    for _ in range(5):
        await asyncio.sleep(0)
    assert app.received == APP and lane_handler.seen == []
    assert not wire.transport.reading
    wire.transport.protocol.resume_writing()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(lane_handler.seen) == 1 and wire.transport.reading
    wire.transport.close()
    assert app.events == ["pause", "resume", "stop timer", "lost"]


async def test_an_application_that_does_not_take_its_client_on_is_swept(monkeypatch):
    clock = Clock()
    app = FakeApp()
    lane = make_lane(None, Limits(write_timeout_s=10), hand_over=lambda: app, clock=clock)
    wire = Wire(lane).send(APP)
    wire.transport.protocol.pause_writing()
    for _ in range(12):
        clock.now += 1
        lane.sweep(clock.now)
    assert wire.transport.aborted and app.events == ["pause", "lost"]


async def test_another_protocol_than_aiohttps_keeps_the_connection():
    class Plain(asyncio.Protocol):
        received = b""

        def data_received(self, data: bytes) -> None:
            self.received += data

    plain = Plain()
    lane = make_lane(None, hand_over=lambda: plain, x=Later())
    wire = Wire(lane).send(APP, X)
    wire.connection.drain()
    wire.connection.close_if_idle()
    assert plain.received == APP + X and not wire.transport.closed
    wire.transport.close()
    assert lane.stats.handed == lane.stats.open == 0


async def test_a_connection_is_given_back_once(monkeypatch):
    monkeypatch.setattr("gateway.lane.handover.FIRST_LOOK_S", 0.0)
    app, lane_handler = FakeApp(), Later()
    lane = make_lane(None, hand_over=lambda: app, x=lane_handler)
    wire = Wire(lane).send(APP + X)  # the application has not answered: it will be asked again
    app.rest()
    wire.connection.drain()  # ... but this comes first
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(lane_handler.seen) == 1 and lane.stats.handed == 0
    wire.transport.close()


async def test_an_earlier_answer_goes_out_before_the_application_hears_of_the_next():
    app, lane_handler = FakeApp(), Later()
    wire = Wire(make_lane(None, hand_over=lambda: app, x=lane_handler)).send(X + APP)
    assert app.received == b"" and not wire.transport.reading
    lane_handler.seen[0].respond(200, b"{}")
    assert app.received == APP and wire.transport.reading and wire.statuses() == [200]
    wire.transport.close()
