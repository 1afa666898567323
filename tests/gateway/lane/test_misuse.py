"""Handlers that do wrong, and clients that leave them: one exchange ends, nothing else does."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from tests.gateway.lane.fakes import Echo, Later, Wire, asked, chunked, make_lane, request


class Raises:
    def __init__(self, where: str) -> None:
        self.where, self.streams = where, where not in ("call", "started")

    def boom(self, *_: object) -> None:
        raise ValueError("boom")

    def __call__(self, exchange) -> None:
        if self.where == "started":
            exchange.start(200)
        if self.where in ("call", "started"):
            self.boom()
        if self.where == "body":
            exchange.on_body = self.boom
        if self.where == "end":
            exchange.on_body_end = self.boom


@pytest.mark.parametrize("where", ["call", "body", "end"])
async def test_a_handler_that_raises_costs_its_own_request_only(where, caplog):
    lane = make_lane(Raises(where), good=Echo())
    for raw in (request("POST", "/x", b"abc"), chunked(b"abc")):
        wire = Wire(lane).send(raw, request("GET", "/good"))
        assert wire.statuses()[0] == 500
        assert "boom" in caplog.text
    assert Wire(lane).send(request("GET", "/good")).statuses() == [200]


async def test_a_handler_that_raises_in_its_answer_breaks_off(caplog):
    wire = Wire(make_lane(Raises("started"))).send(request(), request())
    assert wire.transport.closed and not wire.answers()[0].whole
    assert "boom" in caplog.text


async def test_a_callback_that_raises_hinders_no_other(caplog):
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 3)
    later.seen[0].on_gone = Raises("gone").boom
    wire.transport.abort()
    assert later.gone == later.seen[1:]
    assert "boom" in caplog.text


async def test_misuse_is_told():
    _, exchange = asked(request() * 2)
    with pytest.raises(RuntimeError, match="between start"):
        exchange.write(b"x")
    with pytest.raises(RuntimeError, match="after start"):
        exchange.end()
    exchange.start(200, length=3)
    with pytest.raises(RuntimeError, match="answered already"):
        exchange.start(200)
    with pytest.raises(RuntimeError, match="answered already"):
        exchange.respond(200)
    with pytest.raises(RuntimeError, match="longer"):
        exchange.write(b"1234")


async def test_a_second_answer_to_a_streamed_request_is_told():
    wire, exchange = asked(request("POST", "/x", b"abc")[:-1], streams=True)
    exchange.start(200)
    wire.send(b"c")
    with pytest.raises(RuntimeError, match="answered already"):
        exchange.respond(200, b"{}")


async def test_after_the_client_has_gone_nothing_happens(caplog):
    caplog.set_level(logging.DEBUG)
    for streams in (False, True):
        wire, exchange = asked(request("POST", "/x", b"abc"), streams=streams)
        wire.transport.abort()
        exchange.start(200)
        assert exchange.write(b"x") is False
        exchange.end()
        exchange.respond(200, b"x")
        exchange.inform(103)
        exchange.pause_body()
        exchange.resume_body()
        exchange.abort()
        assert (exchange.peer, exchange.tls) == ("", False)
        assert wire.raw == b"" and not caplog.records


async def test_on_gone_comes_once_and_only_before_the_answers_end():
    later = Later()
    wire = Wire(make_lane(later)).send(request() * 3)
    later.seen[0].respond(200, b"{}")
    later.seen[1].start(200)
    wire.transport.abort()
    assert later.gone == later.seen[1:]
    assert wire.lane.stats.gone == 2 and wire.lane.stats.open == 0


async def test_a_streamed_body_that_breaks_a_rule_ends_the_exchange():
    for started in (False, True):
        later = Later(streams=True)
        wire = Wire(make_lane(later))
        raw = chunked(b"abc")
        wire.send(raw[: raw.index(b"abc")])
        if started:
            later.seen[0].start(200)
        wire.send(b"abcdef\r\n")
        assert later.gone == later.seen
        later.seen[0].respond(200, b"too late")
        if started:
            assert not wire.answers()[0].whole and wire.transport.closed
        else:
            assert wire.statuses() == [400]


async def test_answering_again_after_the_end_does_nothing():
    for raw in (request(), request() * 2):
        wire, exchange = asked(raw)
        exchange.respond(200, b"{}")
        before = wire.raw
        exchange.respond(200, b"{}")
        exchange.start(200)
        exchange.end()
        exchange.abort()
        assert wire.raw == before and not wire.transport.closed


async def test_an_answered_exchange_is_freed_without_the_garbage_collector():
    class Cyclic:
        streams = False

        def __init__(self):
            self.seen = []

        def __call__(self, exchange):
            exchange.on_gone = lambda: exchange
            self.seen.append(exchange)

    for raw in (request(), request() * 2, request("HEAD")):
        handler = Cyclic()
        wire = Wire(make_lane(handler)).send(raw)
        marks = [_Mark() for _ in handler.seen]
        references = [weakref.ref(mark) for mark in marks]
        for exchange, mark in zip(handler.seen, marks, strict=True):
            exchange.body = mark
        del marks, mark
        gc.disable()
        try:
            for exchange in handler.seen:
                exchange.respond(200, b"{}")
            del exchange
            handler.seen.clear()
            assert [reference() for reference in references] == [None] * len(references)
        finally:
            gc.enable()
        assert not wire.transport.closed


class _Mark:
    """Something to refer to weakly, which exchanges are not."""
