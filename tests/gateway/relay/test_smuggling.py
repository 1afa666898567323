"""Messages that two parsers could read in two ways: none passes in either direction."""

from __future__ import annotations

import pytest

from gateway.relay.connection import MAX_INTERIM
from tests.gateway.relay.fakes import Upstream, relaying, until

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b"content-length: 5\r\n\r\nhello"

NONSENSE = {
    "both framings": OK + b"transfer-encoding: chunked\r\n" + BODY,
    "the other way round": OK + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
    "two lengths": OK + b"content-length: 3\r\n" + BODY,
    "a signed length": OK + b"content-length: +5\r\n\r\nhello",
    "a length that no number holds": OK + b"content-length: 99999999999999999999999\r\n\r\n",
    "a bare line feed": OK.replace(b"\r", b"") + BODY,
    "a bare return": OK + b"x-a: 1\rx-b: 2\r\n" + BODY,
    "a zero byte": OK + b"x-a: 1\x002\r\n" + BODY,
    "a folded line": OK + b"x-a: 1\r\n x-b: 2\r\n" + BODY,
    "a space before the colon": OK + b"x-a : 1\r\n" + BODY,
    "a status of two digits": b"HTTP/1.1 99 OK\r\n" + BODY,
    "another protocol": b"HTTP/2 200\r\n" + BODY,
    "a chunk too large for a number": OK + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17,
    "a chunk of less than nothing": OK + b"transfer-encoding: chunked\r\n\r\n-5\r\nhello",
    "interim answers without end": b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n" * (MAX_INTERIM + 1),
}


@pytest.mark.parametrize("name", NONSENSE)
async def test_an_answer_that_may_be_read_in_two_ways_is_a_bad_gateway(name):
    async def script(call):
        await call.send(NONSENSE[name] + b"\r\n")

    async with relaying(Upstream("a", script), model="retries = 0") as gateway:
        reply = await gateway.ask()
        assert reply.status == 502 and b"replica a " in reply.body
        assert reply.header("x-should-retry") == "false"
        assert len(reply.interim) <= MAX_INTERIM
        await until(lambda: not gateway.pool.replicas[0].connections.open)


@pytest.mark.parametrize("pieces", [1, 2])
async def test_trailers_are_no_fields_of_the_head(pieces):
    async def script(call):
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: a/b\r\n\r\n"
        rest = b"5;ext=1\r\nhello\r\n0\r\ncontent-type: c/d\r\nset-cookie: session=theirs\r\n\r\n"
        if pieces == 2:
            await call.send(head)
            await until(lambda: gateway.clients[-1].reply.status)
        await call.send(rest if pieces == 2 else head + rest)

    async with relaying(Upstream("a", script)) as gateway:
        reply = await gateway.ask()
        assert reply.complete and reply.body == b"hello"
        assert reply.header("content-type") == "a/b" and reply.header("set-cookie") is None


async def test_what_follows_an_answer_is_nobodys():
    async def script(call):
        await call.send(OK + BODY + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async with relaying(Upstream("a", script)) as gateway:
        client = await gateway.connect()
        for _ in range(4):
            assert (await gateway.ask(client=client)).body == b"hello"


async def test_an_upgrade_to_http_in_the_clear_is_an_ordinary_request():
    """Through a tunnel of HTTP/2, requests would reach paths that no route leads to."""
    upstream = Upstream("a", lambda call: call.answer(b"plain"))
    async with relaying(upstream) as gateway:
        fields = "connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAA\r\n"
        for protocol in ("h2c", "websocket, H2C", "HTTP/2.0"):
            reply = await gateway.ask(fields=f"{fields}upgrade: {protocol}\r\n")
            assert (reply.status, reply.body) == (200, b"plain")
            sent = upstream.calls[-1]
            assert not {"connection", "upgrade", "http2-settings"} & {n for n, _ in sent.headers}


@pytest.mark.parametrize(
    "path",
    [
        "/static/../admin",
        "/static/%2e%2e/admin",
        "/static/..%2fadmin",
        "/./admin",
        "/static/..",
        "/static/..;/admin",
        "/static/.%2E\\admin",
    ],
)
async def test_a_path_that_leads_past_its_route_is_refused(path):
    upstream = Upstream("a", lambda call: call.answer(call.target.encode()))
    routes = '[[routes]]\npath = "/"\nmodel = "m"\n[[routes]]\npath = "/static"\nmodel = "m"\n'
    async with relaying(upstream, routes=routes) as gateway:
        reply = await gateway.ask(path)
        assert reply.status == 400 and b"past its route" in reply.body
        for fine in ("/static/...", "/.well-known/x", "/a..b", "/static/x.", "/..a"):
            assert (await gateway.ask(fine)).body == fine.encode()


async def test_a_path_that_servers_take_for_anothers_is_no_ones():
    upstream = Upstream("a", lambda call: call.answer(call.target.encode()))
    routes = (
        '[[routes]]\npath = "/"\nmodel = "m"\npublic = true\n'
        '[[routes]]\npath = "/admin"\nmodel = "m"\n'
    )
    async with relaying(upstream, routes=routes) as gateway:
        surface = gateway.fleet.surface
        assert surface.public("/x", None) and not surface.public("/admin/x", None)
        for path in ("//admin/x", "/%61dmin", "/%2fadmin"):
            assert surface.public(path, None) is False
            assert (await gateway.ask(path)).status == 404
        for path in ("/a//b", "/caf%C3%A9", "/admin//x", "/admin/%20"):
            assert (await gateway.ask(path)).body == path.encode()
