"""Slow clients, by an injected clock: the lane is swept by hand, and nothing sleeps."""

from __future__ import annotations

import pytest

from gateway.lane import Limits
from gateway.lane.timeouts import Outflow, Pace
from tests.gateway.lane.fakes import Clock, Echo, Later, Wire, chunked, make_lane, request

LIMITS = Limits(
    head_timeout_s=10,
    body_timeout_s=30,
    min_body_rate=10,
    idle_timeout_s=75,
    write_timeout_s=60,
    linger_s=3,
)


class Scene:
    def __init__(self, handler=None) -> None:
        self.clock = Clock()
        self.lane = make_lane(handler or Echo(), LIMITS, clock=self.clock)
        self.wire = Wire(self.lane)
        self.transport = self.wire.transport

    def wait(self, seconds: float) -> Scene:
        """In steps of a second, as the real sweep goes."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.lane.sweep(self.clock.now)
        return self


async def test_a_slow_head_is_answered_408_and_closed():
    scene = Scene()
    scene.wire.send(b"GET /x HT")
    scene.wait(10)
    assert scene.wire.raw == b""
    scene.wait(1)
    assert scene.wire.statuses() == [408]
    assert scene.lane.stats.timeouts == 1


async def test_a_head_that_drips_is_slow_all_the_same():
    scene = Scene()
    for at in range(11):
        scene.wire.send(request()[at : at + 1])
        scene.wait(1)
    assert scene.wire.statuses() == [408]


async def test_a_heads_time_begins_with_its_first_byte():
    scene = Scene()
    scene.wait(20)
    scene.wire.send(request()[:9])
    scene.wait(9)
    scene.wire.send(request()[9:])
    assert scene.wire.statuses() == [200]


async def test_each_head_has_its_own_time():
    scene = Scene()
    for _ in range(5):
        scene.wire.send(request()[:9])
        scene.wait(9)
        scene.wire.send(request()[9:])
    assert scene.wire.statuses() == [200] * 5


async def test_a_stalled_body_is_answered_408_and_a_slow_one_is_waited_for():
    scene = Scene()
    scene.wire.send(request("POST", "/x", b"x" * 2000)[:-2000])
    for _ in range(20):
        scene.wire.send(b"x" * 50)
        scene.wait(5)  # ten bytes a second will do
    assert scene.wire.raw == b""
    scene.wait(62)
    assert scene.wire.statuses() == [408]
    assert b"connection: close" in scene.wire.raw and scene.transport.eof_written
    assert scene.lane.stats.requests == 0


async def test_a_body_that_drips_is_stalled_all_the_same():
    scene = Scene()
    scene.wire.send(chunked(b"x" * 200)[:-200])
    for _ in range(62):
        scene.wire.send(b"x")
        scene.wait(1)
    assert scene.wire.statuses() == [408]


async def test_a_stalled_streamed_body_tells_its_handler():
    for started in (False, True):
        later = Later(streams=True)
        scene = Scene(later)
        scene.wire.send(request("POST", "/x", b"x" * 2000)[:-1000])
        if started:
            later.seen[0].start(200)
        scene.wait(62)
        assert later.gone == later.seen
        assert scene.wire.statuses() == [200 if started else 408]
        assert scene.transport.closed == started


async def test_a_body_that_the_handler_holds_up_is_not_the_clients_fault():
    later = Later(streams=True)
    scene = Scene(later)
    scene.wire.send(request("POST", "/x", b"x" * 2000)[:-1000])
    later.seen[0].pause_body()
    scene.wait(200)
    assert scene.wire.raw == b"" and later.gone == []
    later.seen[0].resume_body()
    scene.wait(29)
    assert later.gone == []


async def test_an_idle_connection_is_closed_without_a_word():
    for first in (b"", request()):
        scene = Scene()
        scene.wire.send(first)
        scene.wait(75)
        assert not scene.transport.closed
        scene.wait(2)
        assert scene.transport.closed and not scene.transport.aborted
        assert b"408" not in scene.wire.raw


async def test_empty_lines_do_not_keep_a_connection():
    scene = Scene()
    for _ in range(80):
        scene.wire.send(b"\r\n")
        scene.wait(1)
    assert scene.transport.closed


async def test_a_connection_with_a_request_in_flight_is_not_idle():
    later = Later()
    scene = Scene(later)
    scene.wire.send(request())
    scene.wait(1000)
    later.seen[0].respond(200, b"{}")
    scene.wait(70)
    assert not scene.transport.closed
    scene.wait(10)
    assert scene.transport.closed


async def test_a_slow_head_behind_a_request_in_flight_waits_for_its_turn_to_be_refused():
    later = Later()
    scene = Scene(later)
    scene.wire.send(request() + b"GET")
    scene.wait(20)
    assert scene.wire.raw == b""
    later.seen[0].respond(200, b"{}")
    assert scene.wire.statuses() == [200, 408]


async def test_a_client_that_takes_nothing_is_cut_off():
    later = Later()
    scene = Scene(later)
    scene.wire.send(request())
    scene.transport.client_reads = False
    later.seen[0].start(200)
    assert not later.seen[0].write(b"x" * 100_000)
    scene.wait(50)
    scene.transport.waiting -= 10  # a little has left
    scene.wait(60)
    assert not scene.transport.closed
    scene.wait(3)
    assert scene.transport.aborted and later.gone == later.seen


async def test_a_refused_client_is_listened_to_for_a_while():
    scene = Scene()
    scene.wire.send(b"nonsense\r\n\r\n")
    assert scene.transport.eof_written
    scene.wait(3)
    assert not scene.transport.closed
    scene.wait(1)
    assert scene.transport.closed


async def test_a_refused_client_that_closes_is_let_go():
    scene = Scene()
    scene.wire.send(b"nonsense\r\n\r\n").eof()
    assert scene.transport.closed


@pytest.mark.parametrize("rate", [5.0, 10.0])
def test_pace(rate):
    pace, slow = Pace(0.0), []
    for second in range(1, 100):
        pace.received += int(rate)
        slow.append(pace.is_slow(float(second), LIMITS))
    assert any(slow) == (rate < LIMITS.min_body_rate)


def test_outflow():
    flow = Outflow()
    assert not flow.is_stalled(100, 0.0, LIMITS)
    assert not flow.is_stalled(90, 60.0, LIMITS)
    assert not flow.is_stalled(90, 120.0, LIMITS)
    assert flow.is_stalled(90, 121.0, LIMITS)
