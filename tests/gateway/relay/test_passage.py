"""Requests and answers through the relay, over real sockets: what passes, and as what."""

from __future__ import annotations

import asyncio

import pytest

from tests.gateway.relay.fakes import Upstream, relaying, until


async def test_a_request_and_its_answer_pass():
    upstream = Upstream("a")
    async with relaying(upstream) as gateway:
        reply = await gateway.ask("/x%20y?y=1", fields="x-request-id: r1\r\nx-mine: 2\r\n")
        assert (reply.status, reply.body) == (200, b"a")
        assert reply.header("x-served-by") == "a" and reply.header("x-request-id") == "r1"
        call = upstream.calls[0]
        assert (call.method, call.target) == ("GET", "/x%20y?y=1")
        assert call.header("host") == "gateway" and call.header("x-mine") == "2"
        assert call.header("x-request-id") == "r1"
        assert call.header("x-forwarded-for") == "127.0.0.1"
        assert call.header("transfer-encoding") is None and call.header("content-length") is None
        assert gateway.counters()["done"] == 1


async def test_a_request_without_an_id_gets_one_that_both_sides_see():
    upstream = Upstream("a")
    async with relaying(upstream) as gateway:
        first, second = await gateway.ask(), await gateway.ask()
        ids = [call.header("x-request-id") for call in upstream.calls]
        assert ids == [first.header("x-request-id"), second.header("x-request-id")]
        assert None not in ids and len(set(ids)) == 2


async def test_connections_on_both_sides_are_kept():
    upstream = Upstream("a")
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        for number in range(5):
            reply = await gateway.ask(f"/{number}", method="POST", body=b"x", client=client)
            assert reply.complete
        assert len({id(call.writer) for call in upstream.calls}) == 1


@pytest.mark.parametrize("size", [0, 1, 1000, 300_000])
async def test_bodies_pass_unchanged_by_length_and_in_chunks(size):
    async def echo(call):
        await call.answer(call.body)

    body = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    upstream = Upstream("a", echo)
    async with relaying(upstream) as gateway:
        reply = await gateway.ask(method="POST", body=body)
        assert reply.body == body
        client = await gateway.connect()
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(body[at : at + 5000]), body[at : at + 5000])
            for at in range(0, size, 5000)
        )
        client.transport.write(head + chunks + b"0\r\n\r\n")
        await until(lambda: client.reply.complete)
        assert client.reply.body == body


async def test_head_has_the_length_and_no_body():
    upstream = Upstream("a", lambda call: call.answer(b"12345"))
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        await gateway.ask(method="HEAD", client=client)
        assert b"content-length: 5\r\n" in client.raw and client.raw.endswith(b"\r\n\r\n")
        assert upstream.calls[0].method == "HEAD"
        reply = await gateway.ask(client=client)
        assert reply.body == b"12345"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_answers_that_have_no_body(status):
    async def script(call):
        await call.send(f"HTTP/1.1 {status}\r\netag: x\r\n\r\n".encode())

    async with relaying(Upstream("a", script)) as gateway:
        reply = await gateway.ask()
        assert reply.status == int(status[:3]) and reply.header("etag") == "x"
        assert gateway.counters()["done"] == 1


async def test_hop_by_hop_fields_of_an_answer_stop_here_and_cookies_all_pass():
    fields = (
        "connection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n"
        "set-cookie: a=1\r\nset-cookie: b=2\r\ndate: then\r\nserver: up\r\n"
    )
    async with relaying(Upstream("a", lambda call: call.answer(b"x", fields=fields))) as gateway:
        reply = await gateway.ask()
        assert [v for n, v in reply.headers if n == "set-cookie"] == ["a=1", "b=2"]
        assert reply.header("x-hop") is None and reply.header("keep-alive") is None
        assert reply.header("server") == "up"
        assert len([n for n, _ in reply.headers if n == "date"]) == 1
        assert reply.header("date") != "then"


async def test_interim_answers_pass_and_100_does_not():
    async def script(call):
        await call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        await call.answer(b"x")

    async with relaying(Upstream("a", script)) as gateway:
        reply = await gateway.ask()
        assert reply.interim == [103] and reply.body == b"x"


async def test_a_client_that_waits_for_100_is_invited():
    async with relaying(Upstream("a", lambda call: call.answer(call.body))) as gateway:
        client = await gateway.connect()
        head = (
            b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 600000\r\n\r\n"
        )
        client.transport.write(head)
        await until(lambda: b"100 Continue" in client.raw)
        client._new()
        client.transport.write(b"y" * 600_000)
        await until(lambda: client.reply.complete)
        assert len(client.reply.body) == 600_000


async def test_an_answer_without_a_length_ends_with_its_connection():
    async def script(call):
        await call.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        call.writer.close()

    async with relaying(Upstream("a", script)) as gateway:
        reply = await gateway.ask()
        assert reply.complete and reply.body == b"all of it"


async def test_an_early_answer_ends_a_request_whose_body_still_comes():
    upstream = Upstream("a", lambda call: call.answer(b"no", "413 Content Too Large"))
    upstream.reads_bodies = False
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        client.transport.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\nabc")
        await until(lambda: client.reply.complete)
        assert client.reply.status == 413
        assert gateway.counters()["live"] == 0


async def test_pipelined_requests_are_answered_in_their_order():
    async def script(call):
        if call.target == "/r0":
            await until(lambda: len(upstream.calls) == 3)
        await call.answer(call.target.encode())

    upstream = Upstream("a", script)
    async with relaying(upstream) as gateway:
        client = await gateway.connect()
        for number in range(3):
            client.transport.write(b"GET /r%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)
        await until(lambda: len(client.raw.split(b"HTTP/1.1 200")) == 4)
        await until(lambda: client.raw.endswith(b"/r2"))
        at = [client.raw.index(b"/r%d" % number) for number in range(3)]
        assert at == sorted(at)


async def test_a_prefix_may_be_stripped_and_the_longest_route_wins():
    upstream = Upstream("a", lambda call: call.answer(call.target.encode()))
    routes = """
[[routes]]
path = "/shop"
model = "m"
strip_prefix = true
[[routes]]
path = "/shop/raw"
model = "m"
"""
    async with relaying(upstream, routes=routes) as gateway:
        assert (await gateway.ask("/shop/cart?x=1")).body == b"/cart?x=1"
        assert (await gateway.ask("/shop")).body == b"/"
        assert (await gateway.ask("/shop/raw/1")).body == b"/shop/raw/1"
        assert (await gateway.ask("/shopping")).status == 404


async def test_a_route_of_another_host_is_no_route():
    routes = '[[routes]]\npath = "/"\nhost = "shop.example"\nmodel = "m"\n'
    async with relaying(Upstream("a"), routes=routes) as gateway:
        client = await gateway.connect()
        assert (await gateway.ask(client=client)).status == 404
        client._new()
        client.transport.write(b"GET / HTTP/1.1\r\nhost: SHOP.example:80\r\n\r\n")
        await until(lambda: client.reply.complete)
        assert client.reply.body == b"a"


async def test_an_upgrade_becomes_a_tunnel_in_both_directions():
    async def script(call):
        assert call.header("upgrade") == "echo" and call.header("connection") == "upgrade"
        await call.send(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n"
            b"sec-websocket-protocol: chat\r\n\r\nhello"
        )
        while data := await call.reader.read(1000):
            await call.send(data.upper())
        call.writer.close()

    async with relaying(Upstream("a", script)) as gateway:
        client = await gateway.connect()
        client.transport.write(
            b"GET /chat HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n"
        )
        await until(lambda: client.raw.endswith(b"hello"))
        assert client.raw.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-protocol: chat\r\n" in client.raw
        client.transport.write(b"abc")
        await until(lambda: client.raw.endswith(b"ABC"))
        assert gateway.pool.replicas[0].load.in_flight == 1
        client.transport.write_eof()
        await until(lambda: client.closed)
        assert gateway.counters()["done"] == 1


async def test_an_upgrade_that_is_declined_is_an_answer():
    async with relaying(Upstream("a")) as gateway:
        reply = await gateway.ask(fields="connection: upgrade\r\nupgrade: h2c\r\n")
        assert (reply.status, reply.body) == (200, b"a")


async def test_a_101_that_nobody_asked_for_is_nonsense():
    async def script(call):
        await call.send(b"HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")

    async with relaying(Upstream("a", script)) as gateway:
        assert (await gateway.ask()).status == 502


async def test_an_unknown_route_and_bad_headers_are_refused():
    async with relaying(Upstream("a"), routes='[[routes]]\npath = "/a"\nmodel = "m"\n') as gateway:
        assert (await gateway.ask("/b")).status == 404
        reply = await gateway.ask("/a", fields="x-deadline-ms: soon\r\n")
        assert reply.status == 400 and b"x-deadline-ms" in reply.body
        assert gateway.counters()["accepted"] == 0


async def test_replicas_share_the_requests():
    upstreams = [Upstream(name) for name in "abc"]
    async with relaying(*upstreams) as gateway:
        await asyncio.gather(*(gateway.ask(f"/{n}") for n in range(60)))
        counts = [len(upstream.calls) for upstream in upstreams]
        assert sum(counts) == 60 and min(counts) > 8
