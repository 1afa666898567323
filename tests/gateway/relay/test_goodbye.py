"""WebSockets through the relay when the gateway goes down: 1001 to both sides, between frames."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
import websockets
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from gateway.relay.goodbye import FrameSpan, to_client, to_upstream
from gateway.ws.frames import frame
from tests.gateway.relay.fakes import Upstream, relaying, until

SIZES = st.lists(st.sampled_from([0, 1, 125, 126, 127, 300, 65535, 65536, 70000]), max_size=5)


def masked(size: int) -> bytes:
    plain = frame(2, b"x" * size)
    end = len(plain) - size
    return bytes((plain[0], plain[1] | 0x80)) + plain[2:end] + b"mask" + plain[end:]


@given(SIZES, st.lists(st.integers(1, 70_100), max_size=30), st.booleans())
def test_the_ends_of_frames_are_found_however_they_are_cut(sizes, cuts, mask):
    frames = [masked(size) if mask else frame(2, b"y" * size) for size in sizes]
    data = b"".join(frames)
    ends = {sum(map(len, frames[:n])) for n in range(len(frames) + 1)}
    span, at = FrameSpan(), 0
    for cut in [*cuts, len(data)]:
        span.feed(data[at : at + cut])
        at = min(at + cut, len(data))
        assert span.between == (at in ends)


@given(SIZES, st.integers(0, 200_000), st.booleans())
def test_goodbye_stands_behind_the_frame_that_was_under_way(sizes, at, inward):
    frames = [masked(size) if inward else frame(2, b"y" * size) for size in sizes]
    data = b"".join(frames)
    at = min(at, len(data))
    side = to_upstream() if inward else to_client()
    out = side.pass_on(data[:at]) + side.leave() + side.pass_on(data[at:])
    ends = [sum(map(len, frames[:n])) for n in range(len(frames) + 1)]
    end = min(e for e in ends if e >= at)
    assert side.said and out[:end] == data[:end]
    assert out[end] == 0x88 and len(out) - end == 2 + (4 if inward else 0) + 27
    assert side.pass_on(b"more") == b"" and side.leave() == b""


@asynccontextmanager
async def echoing():
    """(relay, url, closes): an echo server behind the relay, and the close codes that it saw."""
    closes: list[int | None] = []

    async def echo(socket):
        try:
            async for message in socket:
                await socket.send(message)
        except websockets.ConnectionClosed:
            pass
        closes.append(socket.close_code)

    async with serve(echo, "127.0.0.1", 0) as server:
        upstream = Upstream("u")
        upstream.port = server.sockets[0].getsockname()[1]
        upstream.start = upstream.stop = lambda: asyncio.sleep(0)
        async with relaying(upstream) as relay:
            yield relay, f"ws://127.0.0.1:{relay.port}/chat", closes


@pytest.mark.parametrize("size", [5, 300_000])
async def test_both_sides_are_told_1001_when_the_gateway_goes_down(size):
    async with echoing() as (relay, url, closes):
        async with connect(url, max_size=None) as client:
            await client.send("x" * size)
            assert await client.recv() == "x" * size
            relay.fleet.say_goodbye()
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd.code == 1001
            assert "going down" in closed.value.rcvd.reason
        await until(lambda: closes == [1001])
        await until(lambda: relay.counters() == {**relay.counters(), "done": 1, "live": 0})


async def test_what_is_in_the_middle_of_a_message_comes_to_its_end():
    async with echoing() as (relay, url, closes):
        async with connect(url, max_size=None) as client:
            await client.send("first")
            assert await client.recv() == "first"
            (transit,) = relay.pool._live
            # Half of a frame is on its way to the upstream.
            whole = masked(10)
            transit._tunnel_body(whole[:9])
            relay.fleet.say_goodbye()
            assert transit._outward is not None and not transit._inward.said
            transit._tunnel_body(whole[9:])
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd.code == 1001
        await until(lambda: closes == [1001])
