"""Requests that are not the lane's own: aiohttp has the connection for as long as it needs it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import pytest
import websockets
from aiohttp import web

from gateway.lane import Lane, Limits
from tests.gateway.lane.conftest import listening
from tests.gateway.lane.fakes import (
    Echo,
    Later,
    chunked,
    read_answers,
    request,
)
from tests.gateway.lane.test_sockets import raw_exchange, until


class Application:
    """An aiohttp application that says what it got, behind a lane that serves /x and /later."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.entered = asyncio.Event()
        self.proceed = asyncio.Event()
        self.later = Later()
        app = web.Application(client_max_size=2**25)
        app.router.add_route("*", "/app{rest:.*}", self.echo)
        app.router.add_get("/slow", self.slow)
        app.router.add_get("/ws", self.socket)
        app.router.add_get("/stream", self.stream)
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None)

    async def echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(body=f"app {request.method} {request.raw_path} ".encode() + body)

    async def slow(self, request: web.Request) -> web.Response:
        self.entered.set()
        try:
            await self.proceed.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.Response(body=b"slow")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(100):
            await answer.write(b"x" * 100_000)
        return answer

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data[::-1])
        return socket

    @asynccontextmanager
    async def behind_a_lane(self, limits: Limits | None = None):
        await self.runner.setup()
        handlers = {"/x": Echo(), "/later": self.later}
        lane = Lane(lambda method, path: handlers.get(path), self.runner.server, limits)
        try:
            async with listening(lane) as port:
                yield lane, port
        finally:
            await self.runner.cleanup()


APP = request("POST", "/app", b"abc")
X = request("POST", "/x", b"abc")
BODIES = {APP: b"app POST /app abc", X: b"POST /x abc"}


@pytest.mark.parametrize("order", ["AX", "XA", "AXAX", "XXAAX", "AAAA"])
def test_both_share_a_connection(run, order):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (lane, port):
            raws = [APP if letter == "A" else X for letter in order]
            expected = [BODIES[raw] for raw in raws]
            # one by one
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for raw, body in zip(raws, expected, strict=True):
                writer.write(raw)
                assert (await reader.readuntil(body)).endswith(body)
            assert lane.stats.accepted == lane.stats.open == 1
            # all at once on the same connection
            writer.write(b"".join(raws))
            answers = b""
            for body in expected:
                answers += await reader.readuntil(body)
            assert [a.body for a in read_answers(answers)] == expected
            writer.close()
            assert lane.stats.handed_over == 2 * order.count("A")
            assert lane.stats.requests == 2 * order.count("X")

    run(scene())


CHUNKED = chunked(b"ab", b"c", target="/app")


@pytest.mark.parametrize("raws", [[APP], [CHUNKED], [X, APP], [APP, X], [CHUNKED, APP]])
def test_requests_are_handed_over_however_they_are_cut(run, raws):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (_, port):
            raw = b"".join(raws)
            expected = [BODIES.get(one, BODIES[APP]) for one in raws]
            for at in range(1, len(raw), 3):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(raw[:at])
                await asyncio.sleep(0.0005)
                writer.write(raw[at:])
                seen = b""
                for body in expected:
                    seen += await reader.readuntil(body)
                assert [a.body for a in read_answers(seen)] == expected
                writer.close()

    run(scene())


def test_large_bodies_still_arriving(run):
    async def scene():
        application = Application()

        async def pieces():
            for _ in range(100):
                yield b"y" * 100_000

        async with (
            application.behind_a_lane() as (lane, port),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        ):
            for expect in (False, True):
                async with client.post("/app", data=pieces(), expect100=expect) as answer:
                    assert await answer.read() == b"app POST /app " + b"y" * 10_000_000
                async with client.post("/x", data=b"abc") as answer:
                    assert await answer.read() == b"POST /x abc"
                async with client.get("/stream") as answer:
                    assert len(await answer.read()) == 10_000_000
            assert lane.stats.accepted == 1

    run(scene())


def test_earlier_answers_go_out_first(run):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (lane, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            later = request("GET", "/later")
            writer.write(later + later + APP + X)
            await until(lambda: len(application.later.seen) == 2)
            await asyncio.sleep(0.01)
            assert lane.stats.handed_over == 0
            for exchange in reversed(application.later.seen):
                exchange.respond(200, b"abc")
            raw = b""
            for _ in range(4):
                raw += await reader.readuntil(b"abc")
            assert [a.body for a in read_answers(raw)] == [
                b"abc",
                b"abc",
                b"app POST /app abc",
                b"POST /x abc",
            ]
            writer.close()

    run(scene())


def test_a_websocket_works_and_is_counted(run):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (lane, port):
            async with websockets.connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
                for message in ("abc", "x" * 100_000):
                    await socket.send(message)
                    assert await socket.recv() == message[::-1]
                assert lane.stats.handed == lane.stats.open == 1
            await until(lambda: lane.stats.open == 0)
            assert lane.stats.handed == 0

    run(scene())


def test_a_websocket_behind_a_fast_request_on_the_same_connection(run):
    async def scene():
        application = Application()
        async with (
            application.behind_a_lane() as (lane, port),
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        ):
            async with client.post("/x", data=b"abc") as answer:
                await answer.read()
            async with client.ws_connect("/ws") as socket:
                await socket.send_str("abc")
                assert await socket.receive_str() == "cba"
            assert lane.stats.accepted == 1

    run(scene())


def test_a_client_that_leaves_cancels_the_applications_handler(run):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (lane, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET", "/slow"))
            await application.entered.wait()
            assert lane.stats.handed == 1
            writer.close()
            await until(lambda: application.cancelled)
            await until(lambda: lane.stats.open == 0)

    run(scene())


def test_what_comes_while_the_application_works_is_kept_and_bounded(run):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (lane, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET", "/slow") + X * 10)
            await application.entered.wait()
            for _ in range(500):
                writer.write(X * 100)
            await asyncio.sleep(0.05)
            assert lane.stats.requests == 0
            application.proceed.set()
            for _ in range(500 * 100 + 10):
                await reader.readuntil(b"POST /x abc")
            assert lane.stats.requests == 500 * 100 + 10
            writer.close()

    run(scene())


def test_drain_closes_idle_and_waits_for_busy_connections(run):
    async def scene():
        application = Application()
        await application.runner.setup()
        lane = Lane(lambda method, path: None, application.runner.server)
        server = await asyncio.get_running_loop().create_server(lane.protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        idle_writer.write(APP)
        await idle_reader.readuntil(b"app POST /app abc")
        asking = asyncio.ensure_future(raw_exchange(port, request("GET", "/slow"), shut=False))
        socket = await websockets.connect(f"ws://127.0.0.1:{port}/ws", proxy=None)
        await application.entered.wait()
        draining = asyncio.ensure_future(lane.drain(0.3))
        assert await idle_reader.read() == b""
        idle_writer.close()
        application.proceed.set()
        assert read_answers(await asking)[0].body == b"slow"
        await socket.send("abc")  # goes on until it is cut off
        assert await socket.recv() == "cba"
        await draining
        assert lane.stats.open == lane.stats.handed == 0
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        server.close()
        await application.runner.cleanup()

    run(scene())


def test_time_limits_hold_for_the_application_too(run):
    limits = Limits(idle_timeout_s=0.1, body_timeout_s=0.1, head_timeout_s=0.1, min_body_rate=1e6)

    async def scene():
        application = Application()
        async with application.behind_a_lane(limits) as (lane, port):
            answer = await raw_exchange(port, APP, shut=False)  # idle after its answer
            assert read_answers(answer)[0].body == b"app POST /app abc"
            assert await raw_exchange(port, APP[:-1], shut=False) == b""
            answer = await raw_exchange(port, APP + b"GET /ap", shut=False)
            assert [a.status for a in read_answers(answer)] == [200, 408]
            assert lane.stats.timeouts == 3

    run(scene())


def test_broken_chunks_are_the_applications_to_refuse(run):
    async def scene():
        application = Application()
        async with application.behind_a_lane() as (_, port):
            raw = chunked(b"abc", target="/app").replace(b"3\r\n", b"zz\r\n")
            answers = read_answers(await raw_exchange(port, raw, shut=False))
            assert [a.status for a in answers] == [400]
            good = await raw_exchange(port, APP + X)
            assert [a.status for a in read_answers(good)][:1] == [200]

    run(scene())


def test_aiohttp_still_has_what_this_relies_on():
    """If this fails, connections stay with aiohttp after its first answer: see handover.rests."""
    assert hasattr(web.RequestHandler, "_waiter")
