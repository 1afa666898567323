"""The least program that could serve small tensors with our parts: the floor of `small-tensor`.

Two processes, as in the product: one parses HTTP and JSON and forms batches, one runs torch; a
UNIX socket between them carries raw rows. It checks nothing, limits nothing, times nothing and
survives nothing: any malformed request, lost process or long body breaks it. Its batches follow
the product's rule: what waits when a slot is free goes, up to 64 rows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
from array import array
from itertools import chain
from typing import cast

import httptools
import orjson
import uvloop

INPUTS, OUTPUTS, MAX_BATCH, SLOTS = 10, 10, 64, 2
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
OPEN = b'{"model_name":"mlp","outputs":[{"name":"y","datatype":"FP32","shape":[1,10],"data":'


class Batcher:
    def __init__(self, loop: asyncio.AbstractEventLoop, torch_end: socket.socket) -> None:
        self.loop, self.socket, self.free, self.scheduled = loop, torch_end, SLOTS, False
        self.waiting: list[tuple[Connection, list[float]]] = []
        self.sent: list[list[tuple[Connection, list[float]]]] = []
        loop.add_reader(torch_end, self.answered)

    def add(self, connection: Connection, row: list[float]) -> None:
        self.waiting.append((connection, row))
        if self.free and not self.scheduled:  # at the end of this turn: others may come with it
            self.scheduled = True
            self.loop.call_soon(self.send)

    def send(self) -> None:
        self.scheduled = False
        while self.waiting and self.free:
            batch, self.waiting = self.waiting[:MAX_BATCH], self.waiting[MAX_BATCH:]
            self.free -= 1
            self.sent.append(batch)
            self.socket.send(array("f", chain.from_iterable(row for _, row in batch)).tobytes())

    def answered(self) -> None:
        values = array("f", self.socket.recv(4 * OUTPUTS * MAX_BATCH)).tolist()
        self.free += 1
        for index, (connection, _) in enumerate(self.sent.pop(0)):
            row = orjson.dumps(values[index * OUTPUTS : (index + 1) * OUTPUTS])
            body = OPEN + row + b"}]}"
            connection.transport.write(HEAD % len(body) + body)
        self.send()


class Connection(asyncio.Protocol):
    __slots__ = ("batcher", "body", "parser", "transport")

    def __init__(self, batcher: Batcher) -> None:
        self.batcher, self.parser = batcher, httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, chunk: bytes) -> None:
        self.body = chunk

    def on_message_complete(self) -> None:
        self.batcher.add(self, orjson.loads(self.body)["inputs"][0]["data"])


def run_torch(end: socket.socket) -> None:
    import torch

    from bench.models.mlp import Mlp

    torch.set_num_threads(1)
    model = Mlp().eval()
    with torch.inference_mode():
        end.send(model(torch.zeros(1, INPUTS)).numpy().tobytes())  # warm: the front may open
        while rows := end.recv(4 * INPUTS * MAX_BATCH):
            batch_NI = torch.frombuffer(bytearray(rows), dtype=torch.float32).view(-1, INPUTS)
            end.send(model(batch_NI).numpy())


async def serve(port: int, torch_end: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    torch_end.recv(4 * OUTPUTS)
    torch_end.setblocking(False)
    batcher = Batcher(loop, torch_end)
    server = await loop.create_server(lambda: Connection(batcher), "127.0.0.1", port)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    port = parser.parse_args().port
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        front.close()
        run_torch(back)
    else:
        back.close()
        uvloop.run(serve(port, front))


if __name__ == "__main__":
    main()
