"""Requests and answers through the relay, over real sockets: what passes, and as what."""

from __future__ import annotations

from tests.gateway.relay.fakes import Upstream, relaying


async def test_a_request_and_its_answer_pass():
    async with relaying(Upstream("a")) as gateway:
        reply = await gateway.ask("/x?y=1", fields="x-request-id: r1\r\n")
        assert (reply.status, reply.body) == (200, b"a")
        assert reply.header("x-served-by") == "a" and reply.header("x-request-id") == "r1"
        assert gateway.counters()["done"] == 1
