"""Many streams and sockets held by a process of their own, and what is told of them."""

from __future__ import annotations

import asyncio

import pytest
import websockets

from bench.contenders import JSON
from bench.load.crowd import Crowd
from bench.load.spec import LoadSpec
from bench.relaying import launch_upstream, listens, request
from bench.rivals.relays import PATH
from bench.series import MeasureFailed


def test_streams_are_held_and_go_on(tmp_path):
    with launch_upstream(tmp_path, "0", step_ms=30.0) as server:
        url = f"http://127.0.0.1:{listens(server)}{PATH}"
        spec = LoadSpec(
            url=url, body=request(stream=True), headers=JSON, connections=250, mode="openai"
        )
        with Crowd(spec) as crowd:
            events, ended = crowd.look()
            assert events >= 250 and not ended
            while events < 1000:
                events, ended = crowd.look()
            assert not ended
            server.stop()
            while not ended:
                _, ended = crowd.look()


async def test_sockets_are_held():
    open_now = set()

    async def wait(socket):
        open_now.add(socket)
        await socket.wait_closed()
        open_now.discard(socket)

    async with websockets.serve(wait, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        spec = LoadSpec(url=f"ws://127.0.0.1:{port}/ws", connections=150, mode="ws")
        crowd = Crowd(spec)
        await asyncio.to_thread(crowd.__enter__)
        try:
            assert len(open_now) == 150
            assert await asyncio.to_thread(crowd.look) == (0, 0)
        finally:
            await asyncio.to_thread(crowd.__exit__, None, None, None)


def test_a_server_that_does_not_stream_is_told(base):
    spec = LoadSpec(url=f"{base}/status/503", connections=3, mode="openai", timeout_s=0.3)
    with pytest.raises(MeasureFailed, match=r"0 of 3 began in time, \{'503': 3\}"), Crowd(spec):
        pass


def test_nobody_there_is_told():
    spec = LoadSpec(url="http://127.0.0.1:1/", connections=3, mode="openai")
    with pytest.raises(MeasureFailed, match="failed"), Crowd(spec):
        pass
