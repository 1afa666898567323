"""The lane on real sockets and both event loops, asked by clients that others wrote."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import io
import json
import random
import socket
import struct
from functools import partial

import aiohttp
import pytest
import requests

from gateway.lane import Lane, Limits
from tests.gateway.lane.conftest import listening
from tests.gateway.lane.fakes import Echo, Later, StreamEcho, chunked, read_answers, request


class Stream:
    """Writes `pieces` as fast as the client takes them."""

    streams = False

    def __init__(self, piece: bytes, count: int) -> None:
        self.piece, self.count = piece, count
        self.waits = 0
        self.gone = asyncio.Event()

    def __call__(self, exchange):
        left = self.count

        def more():
            nonlocal left
            while left:
                left -= 1
                if not exchange.write(self.piece):
                    self.waits += 1
                    return
            exchange.end()

        exchange.on_writable, exchange.on_gone = more, self.gone.set
        exchange.start(200, b"application/octet-stream")
        more()


def lane_of(handler=None, limits=None, **paths) -> Lane:
    return Lane(lambda method, path: paths.get(path.strip("/"), handler), None, limits)


async def raw_exchange(port: int, *pieces: bytes, shut: bool = True) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
    if shut:
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def until(happened) -> None:
    while not happened():  # noqa: ASYNC110 - the sockets, not we, know when
        await asyncio.sleep(0.001)


async def in_thread(function, *arguments):
    return await asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))


def test_aiohttp_client(run):
    async def scene():
        async with (
            listening(lane_of(Echo(), stream=StreamEcho())) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
        ):
            for size in (0, 1, 1000, 300_000, 5_000_000):
                async with client.post("/a%2Fb", data=io.BytesIO(b"x" * size)) as answer:
                    assert await answer.read() == b"POST /a%2Fb " + b"x" * size

            async def pieces():
                for _ in range(50):
                    yield b"y" * 10_000

            for path in ("/x", "/stream"):
                async with client.post(path, data=pieces(), expect100=True) as answer:
                    assert await answer.read() == f"POST {path} ".encode() + b"y" * 500_000
            async with client.post("/x", data=b"z" * 9, compress="gzip") as answer:
                assert await answer.read() == b"POST /x " + b"z" * 9
            async with client.head("/x") as answer:
                assert answer.headers["content-length"] == "8"

            async def get(path):
                async with client.get(path) as answer:
                    return await answer.read()

            answers = await asyncio.gather(*(get(f"/{n}") for n in range(50)))
            assert answers == [b"GET /%d " % n for n in range(50)]

    run(scene())


def test_http_client(run):
    def ask(port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        out = []
        for body in (None, b"abc", iter([b"ab", b"cd"]), b"x" * 1_000_000):
            client.request("POST", "/x", body)
            out.append(client.getresponse().read())
        client.close()
        return out

    async def scene():
        async with listening(lane_of(Echo())) as port:
            assert await in_thread(ask, port) == [
                b"POST /x " + body for body in (b"", b"abc", b"abcd", b"x" * 1_000_000)
            ]

    run(scene())


def test_requests_client(run):
    def ask(port):
        with requests.Session() as session:
            packed = gzip.compress(b"abc")
            headers = {"content-encoding": "gzip"}
            url = f"http://127.0.0.1:{port}/x?a=b"
            return [session.post(url, data=packed, headers=headers).content for _ in range(3)]

    async def scene():
        async with listening(lane := lane_of(Echo())) as port:
            assert await in_thread(ask, port) == [b"POST /x?a=b abc"] * 3
            assert lane.stats.accepted == 1

    run(scene())


def test_unix_socket(run, tmp_path):
    async def scene():
        lane = lane_of(Echo())
        path = str(tmp_path / "lane.sock")
        server = await asyncio.get_running_loop().create_unix_server(lane.protocol, path)
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as client,
            client.post("http://test/x", data=b"abc") as answer,
        ):
            assert await answer.read() == b"POST /x abc"
        server.close()
        await lane.drain(1)

    run(scene())


def test_clients_of_a_unix_socket_that_leave_are_noticed(run, tmp_path):
    async def scene():
        lane = lane_of(later := Later())
        path = str(tmp_path / "lane.sock")
        server = await asyncio.get_running_loop().create_unix_server(lane.protocol, path)
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(request())
        await until(lambda: later.seen)
        writer.close()
        await until(lambda: later.gone)
        server.close()
        await lane.drain(1)

    run(scene())


def test_refusals_can_be_read_while_the_body_is_still_being_sent(run):
    def ask(port):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        client.request("POST", "/x", b"x" * 3_000_000)
        answer = client.getresponse()
        out = answer.status, json.loads(answer.read())
        client.close()
        return out

    async def scene():
        async with listening(lane_of(Echo(), Limits(max_body=1000))) as port:
            status, error = await in_thread(ask, port)
            assert status == 413 and "1000" in error["error"]
            good = await raw_exchange(port, request())
            assert [a.status for a in read_answers(good)] == [200]

    run(scene())


def test_a_bomb_is_stopped_while_it_is_inflated(run):
    bomb = gzip.compress(bytes(200_000_000), 1)

    async def scene():
        async with listening(lane_of(Echo(), Limits(max_body=100_000))) as port:
            raw = request("POST", "/x", bomb, "content-encoding: gzip")
            answer = await raw_exchange(port, raw)
            assert [a.status for a in read_answers(answer)] == [413]

    assert len(bomb) < 1_000_000
    run(scene())


def test_others_have_their_turn_while_a_body_is_inflated(run):
    bomb = gzip.compress(bytes(100_000_000), 1)
    fine = gzip.compress(random.Random(1).randbytes(1000) * 900, 1)

    async def scene():
        async with listening(lane_of(Echo(), Limits(max_body=50_000_000))) as port:
            bad = asyncio.create_task(
                raw_exchange(port, request("POST", "/x", bomb, "content-encoding: gzip"))
            )
            large = asyncio.create_task(
                raw_exchange(port, request("POST", "/x", fine, "content-encoding: gzip") * 2)
            )
            while not bad.done():
                answers = read_answers(await raw_exchange(port, request()))
                assert [a.status for a in answers] == [200]
                turns.append(bad.done())
            assert [a.status for a in read_answers(await bad)] == [413]
            assert [a.status for a in read_answers(await large)] == [200, 200]

    turns: list[bool] = []
    run(scene())
    assert turns.count(False) >= 3


def test_garbage_does_no_harm(run):
    garbage = [
        b"\x16\x03\x01" + bytes(200),
        b"\0" * 1000,
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"\r\n" * 5000,
        bytes(range(256)) * 10,
        request()[:-2] + b"\xff\r\n\r\n",
    ]

    async def scene():
        async with listening(lane := lane_of(Echo())) as port:
            for raw in garbage:
                await raw_exchange(port, raw)
                good = await raw_exchange(port, request())
                assert [a.status for a in read_answers(good)] == [200]
            assert lane.stats.open == 0

    run(scene())


def test_half_closing_clients_get_their_answers(run):
    async def scene():
        later = Later()
        async with listening(lane_of(later)) as port:
            asking = asyncio.ensure_future(raw_exchange(port, request() * 2))
            await until(lambda: len(later.seen) == 2)
            await asyncio.sleep(0.05)  # the client is asked whether it is still there
            for exchange in later.seen:
                exchange.respond(200, b"{}")
            answers = [a.status for a in read_answers(await asking)]
            assert answers[-2:] == [200, 200] and set(answers[:-2]) <= {100}
            assert later.gone == []

    run(scene())


def left_behind(port: int, raw: bytes, *, reset: bool) -> None:
    """Send and leave, by an orderly close or by a reset."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(raw)


def test_clients_that_leave_are_noticed_while_they_are_waited_for(run):
    async def scene():
        handlers = [Later(), Later(streams=True)]
        for later in handlers:
            async with listening(lane := lane_of(later)) as port:
                for reset in (False, True):
                    for raw in (request(), request("POST", "/x", b"x" * 100), chunked(b"abc")):
                        await in_thread(partial(left_behind, port, raw, reset=reset))
                # A reset may come with the request, which then is never begun.
                await until(lambda lane=lane: lane.stats.accepted == 6 and not lane.stats.open)
            assert len(later.seen) >= 3 and set(later.gone) == set(later.seen)

    run(scene())


def test_a_client_that_leaves_in_the_middle_of_a_stream_stops_it(run):
    async def scene():
        stream = Stream(b"x" * 10_000, 1_000_000)
        async with listening(lane_of(stream)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request())
            await reader.readexactly(100_000)
            writer.transport.abort()
            await stream.gone.wait()
        assert stream.waits

    run(scene())


def test_a_body_that_only_the_connections_end_would_end_is_reset_when_it_is_cut(run):
    async def scene():
        later = Later()
        async with listening(lane_of(later)) as port:
            asking = asyncio.ensure_future(raw_exchange(port, b"GET /x HTTP/1.0\r\n\r\n"))
            await until(lambda: later.seen)
            later.seen[0].start(200)
            later.seen[0].write(b"abc")
            later.seen[0].abort()
            with pytest.raises(ConnectionResetError):
                await asking

    run(scene())


def test_a_slow_reader_gets_everything_and_holds_little(run):
    async def scene():
        stream = Stream(b"x" * 50_000, 400)
        lane = lane_of(stream)
        async with listening(lane) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
            writer.write(request("GET", "/x", None, "connection: close"))
            await asyncio.sleep(0.01)
            (connection,) = lane._connections
            most, received = 0, 0
            while piece := await reader.read(100_000):
                received += len(piece)
                most = max(most, connection.transport.get_write_buffer_size())
            writer.close()
        assert received > 400 * 50_000
        assert stream.waits and most < 300_000

    run(scene())


def test_drain_on_real_sockets(run):
    async def scene():
        later = Later()
        lane = lane_of(later)
        server = await asyncio.get_running_loop().create_server(lane.protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        asking = asyncio.ensure_future(raw_exchange(port, request(), shut=False))
        hanging = asyncio.ensure_future(raw_exchange(port, request(), shut=False))
        await until(lambda: len(later.seen) == 2)
        server.close()
        draining = asyncio.ensure_future(lane.drain(0.2))
        assert await idle_reader.read() == b""
        idle_writer.close()
        later.seen[0].respond(200, b"{}")
        (answer,) = read_answers(await asking)
        assert answer.headers[b"connection"] == b"close"
        await draining
        assert later.gone == later.seen[1:]
        results = await asyncio.gather(hanging, return_exceptions=True)
        assert results == [b""] or isinstance(results[0], ConnectionError)

    run(scene())


def test_real_time_limits(run):
    limits = Limits(head_timeout_s=0.05, idle_timeout_s=0.1, body_timeout_s=0.05, min_body_rate=1e6)

    async def scene():
        async with listening(lane := lane_of(Echo(), limits)) as port:
            assert await raw_exchange(port, request(), shut=False) != b""
            for raw in (b"GET /", request("POST", "/x", b"abc")[:-1]):
                answer = await raw_exchange(port, raw, shut=False)
                assert [a.status for a in read_answers(answer)] == [408]
            assert lane.stats.timeouts == 3

    run(scene())
