"""A request that has ended holds nothing: its body goes at once, not with the next collection."""

from __future__ import annotations

import asyncio
import gc
import random
from pathlib import Path

import pytest

from bench.mirror import BODY, CONFIG, REQUEST, MirrorLoop, Sink
from gateway.config import parse
from gateway.fleet import Fleet
from gateway.lane import Exchange, Lane
from gateway.oip import OipSurface
from gateway.request import TensorRequest

INFER = "/v2/models/m/infer"


def post(path: str, body: bytes, *fields: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def infer(shape: str, data: str) -> bytes:
    tensor = f'{{"name":"x","shape":{shape},"datatype":"FP32","data":{data}}}'
    return post(INFER, f'{{"inputs":[{tensor}]}}'.encode())


RAW = "Inference-Header-Content-Length: "
CASES = {
    "answered": [REQUEST],
    "answered, in pieces": [REQUEST[:20], REQUEST[20:150], REQUEST[150:]],
    "answered, raw": [post(INFER, bytes(40), RAW + "0")],
    "raw of a wrong size": [post(INFER, bytes(4000), RAW + "0")],
    "a header length past the body": [post(INFER, bytes(40), RAW + "99")],
    "a header length that is none": [post(INFER, bytes(40), RAW + "x")],
    "no JSON": [post(INFER, b"{")],
    "a wrong shape": [infer("[1,9]", "[1]")],
    "a wrong value": [infer("[1,10]", '[1,2,3,4,5,6,7,8,9,"a"]')],
    "no such model": [post("/v2/models/nope/infer", b"{}")],
    "no such version": [post("/v2/models/m/versions/9/infer", BODY)],
    "a wrong verb": [b"GET /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n\r\n"],
    "a deadline that has passed": [post(INFER, BODY, "x-deadline-ms: 0")],
    "a bad header": [post(INFER, BODY, "x-priority: z")],
    "no gzip": [post(INFER, b"zzzz", "Content-Encoding: gzip")],
    "statistics of nothing": [b"GET /v2/models/nope/stats HTTP/1.1\r\nHost: x\r\n\r\n"],
    "a load with parameters": [post("/v2/repository/models/m/load", b'{"parameters":{"a":1}}')],
}


class Client(Sink):
    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...


async def left_behind(pieces: list[bytes]) -> list[str]:
    """What only a collection frees after a few such requests."""
    loop = asyncio.get_running_loop()
    fleet = Fleet(
        parse(CONFIG, Path("x.toml"), {}),
        Path("."),
        gateway="test",
        switch=lambda op, model, done: done(None),
        loop=loop,
        rng=random.Random(0),
    )
    try:
        lane = Lane(OipSurface(fleet).resolve)
        await fleet.met(10.0)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        for _ in range(3):
            connection, client = lane.protocol(), Client()
            connection.connection_made(client)
            for piece in pieces:
                connection.data_received(piece)
            async with asyncio.timeout(10):
                while not client.answers:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
            connection.connection_lost(None)
        del connection, client
        gc.collect()
        return [type(one).__name__ for one in gc.garbage if type(one) in (Exchange, TensorRequest)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        await fleet.close()


@pytest.mark.parametrize("case", CASES)
def test_nothing_waits_for_the_collector(case):
    MirrorLoop.mirrors.clear()
    with asyncio.Runner(loop_factory=MirrorLoop) as runner:
        assert runner.run(left_behind(CASES[case])) == []
