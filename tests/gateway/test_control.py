"""Calls over a control channel: answers, errors, broken connections, bytes that are no frames."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from backends.wire import Fault, Kind, encode
from gateway.control import (
    MAX_RUNNING,
    ControlChannel,
    ControlError,
    call_replica,
    replica_status,
)
from gateway.errors import NotFound
from tests.gateway.fake_replica import FakeReplica


@contextlib.asynccontextmanager
async def channels(here=None, there=None):
    left, right = socket.socketpair()
    mine = await ControlChannel.open(left, here, peer="the worker")
    theirs = await ControlChannel.open(right, there)
    try:
        yield mine, theirs
    finally:
        for channel in (mine, theirs):
            channel.close()
            await channel.closed.wait()


async def test_both_ends_call_at_the_same_time():
    async def double(arguments):
        return {"twice": arguments["x"] * 2}

    async with channels({"double": double}, {"double": double}) as (mine, theirs):
        calls = [channel.call("double", x=n) for n in range(20) for channel in (mine, theirs)]
        answers = await asyncio.gather(*calls)
    assert [answer["twice"] for answer in answers] == [n * 2 for n in range(20) for _ in range(2)]


async def test_errors_of_the_other_side_keep_their_status_and_code():
    async def refuse(_):
        raise ControlError("not today", status=409, code="closed")

    async def missing(_):
        raise NotFound("there is no replica 'x'")

    async def broken(_):
        return {}["key"]

    handlers = {"refuse": refuse, "missing": missing, "broken": broken}
    async with channels(None, handlers) as (mine, _):
        for op, status, code, message in [
            ("refuse", 409, "closed", "not today"),
            ("missing", 404, "not_found", "there is no replica 'x'"),
            ("broken", 500, "control_failed", "broken failed: KeyError: 'key'"),
            ("other", 404, "unknown_op", "known: broken, missing, refuse"),
        ]:
            with pytest.raises(ControlError, match=message) as caught:
                await mine.call(op)
            assert (caught.value.status, caught.value.code) == (status, code)


async def test_a_connection_that_breaks_ends_every_call_and_every_handler():
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow(_):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with channels(None, {"slow": slow}) as (mine, theirs):
        call = asyncio.ensure_future(mine.call("slow"))
        await started.wait()
        theirs.close()
        with pytest.raises(ControlError, match="the connection to the worker is closed"):
            await call
        await cancelled.wait()
        await mine.closed.wait()
        with pytest.raises(ControlError) as caught:
            await mine.call("slow")
        assert caught.value.code == "connection_closed"


async def test_a_caller_that_gave_up_leaves_the_channel_usable():
    release = asyncio.Event()

    async def slow(_):
        await release.wait()
        return {}

    async def quick(_):
        return {"ok": True}

    async with channels(None, {"slow": slow, "quick": quick}) as (mine, _):
        call = asyncio.ensure_future(mine.call("slow"))
        await mine.call("quick")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        release.set()
        assert await mine.call("quick") == {"ok": True}


async def test_operations_under_way_are_bounded():
    release = asyncio.Event()

    async def slow(_):
        await release.wait()
        return {}

    async with channels(None, {"slow": slow}) as (mine, _):
        calls = [asyncio.ensure_future(mine.call("slow")) for _ in range(MAX_RUNNING)]
        await asyncio.sleep(0)  # they are on their way, in this order
        with pytest.raises(ControlError, match="64 operations are running") as caught:
            await mine.call("slow")
        assert caught.value.status == 429
        release.set()
        assert await asyncio.gather(*calls) == [{}] * MAX_RUNNING


async def test_bytes_that_are_no_frame_close_the_channel(caplog):
    left, right = socket.socketpair()
    channel = await ControlChannel.open(left, peer="the stranger")
    right.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await channel.closed.wait()
    right.close()
    assert "the stranger sent what is no frame" in caplog.text


async def test_a_ping_is_answered_and_other_frames_are_let_be():
    left, right = socket.socketpair()
    right.setblocking(False)
    channel = await ControlChannel.open(left, peer="the replica")
    loop = asyncio.get_running_loop()
    fault = Fault(status=500, code="x", message="nobody asked").to_json()
    frames = [(Kind.STREAM, 7, []), (Kind.ERROR, 99, fault), (Kind.PING, 5, None)]
    for kind, id, meta in frames:
        await loop.sock_sendall(right, b"".join(encode(kind, id, meta)))
    assert await loop.sock_recv(right, 1000) == b"".join(encode(Kind.PONG, 5))
    channel.close()
    right.close()
    await channel.closed.wait()


# --------------------------------------------------------------------------------- with a replica


async def test_an_operation_on_a_replica_and_its_status(tmp_path):
    server = await asyncio.get_running_loop().create_unix_server(FakeReplica, tmp_path / "r.sock")
    address = f"unix:{tmp_path}/r.sock"
    assert (await call_replica(address, "reload"))["reload_to"] == "2-b"
    with pytest.raises(ControlError, match="nothing to go back to") as caught:
        await call_replica(address, "rollback", version="1-a")
    assert caught.value.status == 409
    assert (await replica_status(address)).state == "ready"
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("address", ["unix:/nonexistent/r.sock", "tcp:127.0.0.1:1"])
async def test_a_replica_that_is_not_there(address):
    with pytest.raises(ControlError, match=f"cannot reach the replica at {address}") as caught:
        await call_replica(address, "reload")
    assert caught.value.status == 503


async def test_a_replica_that_refuses_the_connection_says_why():
    class Refusing(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            fault = Fault(status=400, code="bad_wire", message="we speak another version")
            self.transport.writelines(encode(Kind.ERROR, 0, fault.to_json()))
            self.transport.close()

    server = await asyncio.get_running_loop().create_server(Refusing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ControlError, match="is closed: we speak another version"):
        await call_replica(f"tcp:127.0.0.1:{port}", "reload")
    server.close()
    await server.wait_closed()


async def test_a_replica_that_closes_before_it_says_anything():
    class Closing(asyncio.Protocol):
        def connection_made(self, transport):
            transport.close()

    server = await asyncio.get_running_loop().create_server(Closing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ControlError, match="is closed"):
        await replica_status(f"tcp:127.0.0.1:{port}")
    server.close()
    await server.wait_closed()
