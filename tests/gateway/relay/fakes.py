"""A scripted upstream in the test's own loop, a relay over it, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httptools

from gateway.config import GatewayConfig, parse
from gateway.http_fleet import HttpFleet
from gateway.http_pool import HttpPool
from gateway.lane import Lane, Limits

Script = Callable[["Call"], Awaitable[None]]


class Call:
    """One request as an upstream sees it, and the means to answer it."""

    def __init__(self, upstream: Upstream, writer: asyncio.StreamWriter) -> None:
        self.upstream, self.writer = upstream, writer
        self.method = self.target = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.reader: asyncio.StreamReader

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"", status: str = "200 OK", fields: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
        await self.send(head.encode() + (b"" if self.method == "HEAD" else body))

    async def start(self, fields: str = "content-type: text/event-stream\r\n") -> None:
        await self.send(f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n{fields}\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def die(self) -> None:
        """The connection is reset."""
        self.writer.transport.abort()


class Upstream:
    """Answers each call by `script`; keeps the calls, and which of them were broken off."""

    def __init__(self, name: str, script: Script | None = None) -> None:
        self.name = name
        self.script: Script = script or (lambda call: call.answer(name.encode()))
        self.calls: list[Call] = []
        self.broken = 0
        self.port = 0
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**16)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a killed process: connections are reset, new ones refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while (call := await self._read(reader, writer)) is not None:
                self.calls.append(call)
                await self.script(call)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.broken += 1
        except asyncio.CancelledError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Call | None:
        call = Call(self, writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        lines = head.decode("latin-1").split("\r\n")[:-2]
        call.method, call.target, _ = lines[0].split(" ")
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            call.headers.append((name, value))
        call.reader = reader
        if (length := call.header("content-length")) is not None and self.reads_bodies:
            call.body = await reader.readexactly(int(length))
        elif call.header("transfer-encoding") == "chunked" and self.reads_bodies:
            while size := int(await reader.readline(), 16):
                call.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        return call

    reads_bodies = True


class Reply:
    """What a client got: one answer, as far as it came."""

    def __init__(self) -> None:
        self.status, self.complete, self.closed = 0, False, False
        self.received = bytearray()
        self.headers: list[tuple[str, str]] = []
        self.interim: list[int] = []

    @property
    def body(self) -> bytes:
        return bytes(self.received)

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Client(asyncio.Protocol):
    """A raw connection: `reply` is the newest answer."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.raw = bytearray()
        self.closed = False
        self.transport: asyncio.Transport
        self.is_head = False
        self._new()

    def _new(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.reply = Reply()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.raw += data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            self.reply.complete = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = self.reply.closed = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.reply.headers.append((name.decode().lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 < status < 200 and status != 101:
            self.reply.interim.append(status)
            self.reply.headers.clear()
        else:
            self.reply.status = status

    def on_body(self, body: bytes) -> None:
        self.reply.received += body

    def on_message_complete(self) -> None:
        if self.reply.status:
            self.reply.complete = True
            self.replies.append(self.reply)


class Relay:
    """A lane over the http fleet of a configuration."""

    def __init__(self, config: GatewayConfig, runtime: Path) -> None:
        loop = asyncio.get_running_loop()
        self.fleet = HttpFleet(runtime, loop=loop, rng=random.Random(1))
        self.fleet.apply(config)
        self.lane = Lane(self.fleet.surface.resolve, None, Limits(linger_s=0.1))
        self.port = 0
        self.clients: list[Client] = []

    @property
    def pool(self) -> HttpPool:
        return self.fleet.pools()[0]

    def counters(self) -> dict[str, int]:
        counters = self.pool.status()["counters"]
        assert counters["accepted"] == sum(n for name, n in counters.items() if name != "accepted")
        return counters

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(Client, "127.0.0.1", self.port)
        self.clients.append(client)
        return client

    async def ask(
        self,
        target: str = "/",
        *,
        method: str = "GET",
        body: bytes | None = None,
        fields: str = "",
        client: Client | None = None,
        complete: bool = True,
    ) -> Reply:
        """One request, and its answer once that is complete or the connection is closed."""
        client = client or await self.connect()
        if method == "HEAD":
            client._parser = httptools.HttpResponseParser(client)
        length = "" if body is None else f"content-length: {len(body)}\r\n"
        head = f"{method} {target} HTTP/1.1\r\nhost: gateway\r\n{length}{fields}\r\n"
        client._new()
        client.transport.write(head.encode() + (body or b""))
        if complete:
            reply = client.reply
            await until(
                lambda: reply.complete or client.closed or (method == "HEAD" and reply.status)
            )
        return client.reply


async def until(condition: Callable[[], object]) -> None:
    """All ends share the test's loop; polling is the one form that fits every condition."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def replica(name: str, port: int, more: str = "") -> str:
    return (
        f'[[models.replicas]]\nname = "{name}"\nkind = "http"\n'
        f'address = "http://127.0.0.1:{port}"\nhealth_s = 0.05\n{more}\n'
    )


@contextlib.asynccontextmanager
async def relaying(
    *upstreams: Upstream,
    relay: str = 'api = "web"',
    model: str = "",
    routes: str = '[[routes]]\npath = "/"\nmodel = "m"\n',
    replicas: str = "",
    runtime: Path = Path("/nowhere"),
) -> AsyncIterator[Relay]:
    for upstream in upstreams:
        await upstream.start()
    text = f'[[models]]\nname = "m"\n{model}\n[models.relay]\n{relay}\n'
    text += "".join(replica(upstream.name, upstream.port, replicas) for upstream in upstreams)
    gateway = Relay(parse(text + routes, Path("/srv/serve.toml"), {}), runtime)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(gateway.lane.protocol, "127.0.0.1", 0)
    gateway.port = server.sockets[0].getsockname()[1]
    try:
        await gateway.fleet.met()
        yield gateway
    finally:
        for client in gateway.clients:
            client.transport.abort()
        server.close()
        await gateway.lane.drain(1)
        await gateway.fleet.close()
        for upstream in upstreams:
            await upstream.stop()
    counters = gateway.counters()
    assert counters["live"] == 0
    for each in gateway.pool.replicas:
        assert (each.load.in_flight, each.load.work) == (0, 0.0)
