"""The least program that could relay HTTP with our parts: the floor of `relay` and `stream`.

One process, httptools on uvloop: a request goes to the next upstream in turn, on a connection that
idles or a new one; the bytes of its answer go to the client as they come. It reads no header,
changes none, checks nothing, limits nothing, times nothing, and survives no upstream's end.
"""

from __future__ import annotations

import argparse
import asyncio
from itertools import cycle
from typing import cast

import httptools
import uvloop


class Upstream(asyncio.Protocol):
    __slots__ = ("client", "idle", "parser", "transport")

    def __init__(self, idle: list[Upstream]) -> None:
        self.idle, self.client = idle, cast("Client", None)
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.client.transport.write(data)
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.idle.append(self)


class Client(asyncio.Protocol):
    __slots__ = ("data", "parser", "relay", "transport")

    def __init__(self, relay: Relay) -> None:
        self.relay, self.data = relay, b""
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        data, self.data = self.data, b""
        self.relay.send(self, data)


class Relay:
    def __init__(self, loop: asyncio.AbstractEventLoop, ports: list[int]) -> None:
        self.loop = loop
        self.turns = cycle([(port, list[Upstream]()) for port in ports])
        self.opening: set[asyncio.Task[None]] = set()

    def send(self, client: Client, data: bytes) -> None:
        port, idle = next(self.turns)
        if idle:
            upstream = idle.pop()
            upstream.client = client
            upstream.transport.write(data)
        else:
            task = self.loop.create_task(self.open(port, idle, client, data))
            self.opening.add(task)
            task.add_done_callback(self.opening.discard)

    async def open(self, port: int, idle: list[Upstream], client: Client, data: bytes) -> None:
        _, upstream = await self.loop.create_connection(lambda: Upstream(idle), "127.0.0.1", port)
        upstream.client = client
        upstream.transport.write(data)


async def serve(port: int, upstreams: list[int]) -> None:
    loop = asyncio.get_running_loop()
    relay = Relay(loop, upstreams)
    server = await loop.create_server(lambda: Client(relay), "127.0.0.1", port, backlog=4096)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("upstreams", type=int, nargs="+", metavar="PORT")
    args = parser.parse_args()
    uvloop.run(serve(args.port, args.upstreams))


if __name__ == "__main__":
    main()
