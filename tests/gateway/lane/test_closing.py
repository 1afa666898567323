"""Ends of connections: drained, half-closed, or gone."""

from __future__ import annotations

import asyncio

import pytest

from gateway.lane import Limits
from tests.gateway.lane.fakes import Clock, Echo, Later, Wire, chunked, make_lane, request


async def drained(lane, grace_s: float = 5.0) -> asyncio.Task[None]:
    task = asyncio.get_running_loop().create_task(lane.drain(grace_s))
    await asyncio.sleep(0)
    return task


async def test_drain_closes_idle_connections():
    lane = make_lane(Echo())
    fresh, used = Wire(lane), Wire(lane).send(request())
    await lane.drain(5)
    assert fresh.transport.closed and used.transport.closed
    assert not fresh.transport.aborted
    assert lane.stats.open == 0


async def test_drain_waits_for_what_is_in_flight_and_says_that_it_closes():
    later = Later()
    lane = make_lane(later)
    wire = Wire(lane).send(request() * 2)
    draining = await drained(lane)
    later.seen[0].respond(200, b"{}")
    assert not wire.transport.closed
    later.seen[1].respond(200, b"{}")
    first, second = wire.answers()
    assert b"connection" not in first.headers and second.headers[b"connection"] == b"close"
    assert wire.transport.closed
    await draining


async def test_drain_with_one_plain_answer_due():
    lane = make_lane(later := Later())
    wire = Wire(lane).send(request())
    draining = await drained(lane)
    later.seen[0].respond(200, b"{}")
    assert wire.answers()[0].headers[b"connection"] == b"close" and wire.transport.closed
    await draining


async def test_no_request_is_begun_after_the_answer_that_says_close():
    lane = make_lane(later := Later())
    wire = Wire(lane).send(request())
    draining = await drained(lane)
    later.seen[0].start(200)
    wire.send(request())
    later.seen[0].end()
    assert len(later.seen) == 1 and len(wire.answers()) == 1
    wire.eof()
    await draining


async def test_a_request_that_has_begun_to_arrive_is_still_served():
    later = Later()
    lane = make_lane(later)
    raw = request("POST", "/x", b"abc")
    wires = [Wire(lane).send(raw[:cut]) for cut in (5, -1)]
    draining = await drained(lane)
    for wire, cut in zip(wires, (5, -1), strict=True):
        wire.send(raw[cut:])
    for wire, exchange in zip(wires, later.seen, strict=True):
        exchange.respond(200, b"{}")
        assert wire.answers()[0].headers[b"connection"] == b"close"
    await draining


async def test_a_stream_that_runs_when_the_drain_begins_may_end():
    later = Later()
    lane = make_lane(later)
    wire = Wire(lane).send(request())
    later.seen[0].start(200)
    draining = await drained(lane)
    later.seen[0].write(b"abc")
    later.seen[0].end()
    assert wire.answers()[0].whole and wire.transport.closed
    await draining


async def test_what_is_not_done_after_the_grace_is_cut_off():
    later = Later()
    lane = make_lane(later)
    wire = Wire(lane).send(request())
    await lane.drain(0)
    assert wire.transport.aborted and later.gone == later.seen


async def test_a_connection_that_comes_during_the_drain_is_served_once(monkeypatch):
    monkeypatch.setattr("gateway.lane.lane.IDLE_GRACE_S", 0.0)
    lane = make_lane(Echo())
    hanging = Wire(make_lane(later := Later())).send(request())
    draining = await drained(hanging.lane)
    hanging.lane.resolve = lane.resolve
    late, silent = Wire(hanging.lane), Wire(hanging.lane)
    late.send(request())
    assert late.answers()[0].headers[b"connection"] == b"close"
    assert late.transport.closed
    for _ in range(5):
        await asyncio.sleep(0)
    assert silent.transport.closed
    later.seen[0].respond(200, b"{}")
    await draining


async def test_a_request_sent_before_the_drain_was_known_is_served():
    lane = make_lane(Echo())
    fresh, used = Wire(lane), Wire(lane).send(request())
    draining = await drained(lane)
    for wire in (fresh, used):
        wire.send(request())
        assert wire.answers()[-1].headers[b"connection"] == b"close"
        assert wire.transport.closed
    await draining


async def test_drain_twice_is_no_harm():
    lane = make_lane(Echo())
    Wire(lane)
    await asyncio.gather(lane.drain(1), lane.drain(1))
    await lane.drain(0)


# -------------------------------------------------------------------------------------- half-closed


@pytest.mark.parametrize("streams", [False, True])
async def test_a_client_that_shuts_its_side_gets_every_answer_due(streams):
    later = Later(streams=streams)
    wire = Wire(make_lane(later)).send(request() * 2).eof()
    assert wire.transport.protocol.eof_received()  # asyncio may say it again
    later.seen[1].respond(200, b"{}")
    assert not wire.transport.closed
    later.seen[0].respond(200, b"{}")
    assert wire.statuses() == [200, 200] and wire.transport.closed


@pytest.mark.parametrize("raw", [request(), request("POST", "/x", b"abc")])
async def test_half_closed_and_one_plain_answer_due(raw):
    wire = Wire(make_lane(later := Later())).send(raw).eof()
    later.seen[0].respond(200, b"{}")
    assert wire.statuses() == [200] and wire.transport.closed


async def test_half_closed_with_requests_that_had_to_wait():
    later = Later()
    wire = Wire(make_lane(later, Limits(pipeline=2))).send(request() * 5).eof()
    for at in range(5):
        later.seen[at].respond(200, b"{}")
    assert wire.statuses() == [200] * 5 and wire.transport.closed


async def test_half_closed_with_nothing_due_is_closed():
    for first in (b"", request(), b"GET /x", b"\r\n"):
        wire = Wire(make_lane(Echo())).send(first).eof()
        assert wire.transport.closed
        assert b"408" not in wire.raw


async def test_half_closed_behind_an_unfinished_head():
    later = Later()
    wire = Wire(make_lane(later)).send(request() + b"GET /").eof()
    later.seen[0].respond(200, b"{}")
    assert wire.statuses() == [200] and wire.transport.closed


@pytest.mark.parametrize("raw", [request("POST", "/x", b"abc"), chunked(b"abc")])
async def test_a_body_cut_off_by_the_clients_end_is_refused(raw):
    wire = Wire(make_lane(Echo())).send(request() + raw[:-1]).eof()
    assert wire.statuses() == [200, 400] and wire.transport.closed


@pytest.mark.parametrize("ending", ["eof", "stall"])
async def test_a_body_that_nobody_wants_and_that_does_not_come_harms_no_earlier_answer(ending):
    clock, first, second = Clock(), Later(), Later(streams=True)
    lane = make_lane(first, clock=clock, s=second)
    wire = Wire(lane).send(request() + request("POST", "/s", b"abc")[:-1])
    second.seen[0].respond(401, b"{}")
    if ending == "eof":
        wire.eof()
    else:
        for _ in range(100):
            clock.now += 1
            lane.sweep(clock.now)
    assert first.gone == []
    first.seen[0].respond(200, b"{}")
    assert wire.statuses() == [200, 401]
    assert wire.transport.closed or wire.transport.eof_written


async def test_half_closed_in_the_middle_of_a_streamed_body():
    later = Later(streams=True)
    wire = Wire(make_lane(later)).send(chunked(b"abc")[:-1]).eof()
    assert later.gone == later.seen
    assert wire.statuses() == [400] and wire.transport.closed


@pytest.mark.interpreted
async def test_a_client_that_is_gone_is_found_out_by_an_interim_answer(monkeypatch):
    monkeypatch.setattr("gateway.lane.probe.FIRST_LOOK_S", 0.0)
    reset = []
    monkeypatch.setattr("gateway.lane.probe.is_reset", lambda transport: bool(reset))
    later = Later()
    wire = Wire(make_lane(later, clock=Clock())).send(request()).eof()
    for _ in range(3):
        await asyncio.sleep(0)
    assert wire.raw == b"HTTP/1.1 100 Continue\r\n\r\n" and later.gone == []
    reset.append(True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert later.gone == later.seen and wire.transport.aborted


async def test_a_client_that_is_there_gets_few_interim_answers(monkeypatch):
    monkeypatch.setattr("gateway.lane.probe.FIRST_LOOK_S", 0.0)
    later = Later()
    wire = Wire(make_lane(later)).send(request()).eof().eof()
    for _ in range(10):
        await asyncio.sleep(0)
    later.seen[0].respond(200, b"{}")
    assert [a.status for a in wire.answers()] == [100, 200]


async def test_no_interim_answer_to_old_clients_or_into_a_stream(monkeypatch):
    monkeypatch.setattr("gateway.lane.probe.FIRST_LOOK_S", 0.0)
    later = Later()
    old = Wire(make_lane(later)).send(b"GET /x HTTP/1.0\r\n\r\n").eof()
    new = Wire(make_lane(later)).send(request()).eof()
    later.seen[1].start(200)
    for _ in range(10):
        await asyncio.sleep(0)
    assert b"100 Continue" not in old.raw + new.raw
    for exchange in later.seen:
        exchange.abort()


async def test_the_sweep_runs_while_there_are_connections_and_in_slices(monkeypatch):
    monkeypatch.setattr("gateway.lane.lane.SLICE", 2)
    clock = Clock()
    lane = make_lane(Echo(), clock=clock)
    lane._period = 0.0
    wires = [Wire(lane) for _ in range(5)]
    clock.now += 1000
    for _ in range(20):
        await asyncio.sleep(0)
    assert all(wire.transport.closed for wire in wires)
    assert lane.stats.timeouts == 5 and lane._timer is None
    wires.append(Wire(lane))
    assert lane._timer is not None
    wires[-1].transport.close()


async def test_the_date_is_renewed_with_the_sweep(monkeypatch):
    now = [1_700_000_000.0]
    monkeypatch.setattr("gateway.lane.response.time.time", lambda: now[0])
    lane = make_lane(Echo())
    wire = Wire(lane).send(request())
    now[0] += 1
    wire.send(request())
    lane._tick()
    wire.send(request())
    first, second, third = (answer.headers[b"date"] for answer in wire.answers())
    assert first == second == b"Tue, 14 Nov 2023 22:13:20 GMT"
    assert third == b"Tue, 14 Nov 2023 22:13:21 GMT"
    wire.transport.close()


async def test_a_transport_that_an_error_has_closed_is_no_trouble():
    def broken(*_: object) -> None:
        raise RuntimeError("the handler is closed")

    for raw in (request(), request() * 2):
        wire = Wire(make_lane(later := Later())).send(raw)
        wire.transport.write = broken
        for exchange in later.seen:
            exchange.respond(200, b"{}")
        wire.transport.close()
        assert wire.lane.stats.open == 0


@pytest.mark.parametrize("error", [OSError(107, "not connected"), RuntimeError("closed")])
async def test_a_client_that_resets_while_it_is_refused_is_no_trouble(error):
    def broken() -> None:
        raise error

    wire = Wire(make_lane(Echo()))
    wire.transport.write_eof = broken
    wire.send(b"nonsense\r\n\r\n")
    assert wire.transport.closed
