"""A gateway over scripted language models: its real lane and fleet, in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

from gateway.auth import Gate
from gateway.config import GatewayConfig, parse
from gateway.fleet import Fleet
from gateway.generation.generate import acts
from gateway.generation.socket import opener
from gateway.lane import Handler, Lane, Limits
from gateway.model import Model
from gateway.oip import OipSurface
from gateway.openapi import beyond
from gateway.tenants import Tenants
from gateway.ws import WebSocketSurface
from tests.gateway.fake_llm import FakeLLM
from tests.gateway.relay.fakes import Client, Reply, until

CHAT = "/v1/chat/completions"
ASK = b'{"model":"m","messages":[{"role":"user","content":"What is the capital of France?"}]}'
STREAM = ASK[:-1] + b',"stream":true}'


class Gateway:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.oip = OipSurface(fleet, generative=acts(fleet), beyond=lambda: beyond(fleet.offered()))
        self.sockets = WebSocketSurface(fleet, streams={"generate": opener(fleet, fleet.backlog)})
        self.lane = Lane(self._resolve, None, Limits(linger_s=0.1))
        self.clients: list[Client] = []
        self.port = 0

    def _resolve(self, method: str, path: str) -> Handler | None:
        return (
            self.fleet.http.surface.resolve(method, path)
            or self.oip.resolve(method, path)
            or self.sockets.resolve(method, path)
        )

    def admit(self, tenants: Tenants, config: GatewayConfig) -> None:
        """Ask for keys, where there are some."""
        self.tenants, self.config = tenants, config
        tenants.apply(config.keys, 1)
        relay = self.fleet.http.surface
        gate = Gate(tenants, route=relay.public, openai=relay.openai)
        gate.apply(config.keys)
        self.lane.guard = gate if gate.closed else None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def model(self) -> Model:
        return self.fleet.model("m")

    def counters(self) -> dict[str, int]:
        counters = self.model.status()["counters"]
        assert counters["accepted"] == sum(n for name, n in counters.items() if name != "accepted")
        return counters

    async def connect(self) -> Client:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(Client, "127.0.0.1", self.port)
        self.clients.append(client)
        return client

    async def post(
        self,
        body: bytes,
        path: str = CHAT,
        *,
        fields: str = "",
        client: Client | None = None,
        complete: bool = True,
        method: str = "POST",
    ) -> Reply:
        """One request; its answer once that is complete or the connection is closed."""
        client = client or await self.connect()
        length = f"content-length: {len(body)}\r\n" if method == "POST" else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n{length}{fields}\r\n"
        client._new()
        client.transport.write(head.encode() + body)
        reply = client.reply
        if complete:
            await until(lambda: reply.complete or client.closed)
        return reply


@contextlib.asynccontextmanager
async def serving(
    tmp_path: Path, *fakes: FakeLLM, model: str = "", more: str = "", ready: bool = True
) -> AsyncIterator[Gateway]:
    """A gateway with the model m, whose replicas are the fakes; `model`: further keys of it."""
    for fake in fakes:
        await fake.start()
    text = f'[[models]]\nname = "m"\n{model}\n' + "".join(
        f'[[models.replicas]]\nname = "r{n}"\naddress = "{fake.address}"\n'
        for n, fake in enumerate(fakes)
    )
    loop = asyncio.get_running_loop()
    config = parse(text + more, Path("/srv/serve.toml"), {})
    tenants = Tenants(loop.time)
    fleet = Fleet(
        config,
        tmp_path,
        gateway="test",
        switch=lambda op, model, done: done(None),
        loop=loop,
        rng=random.Random(1),
        weight=tenants.weight,
    )
    gateway = Gateway(fleet)
    gateway.admit(tenants, config)
    server = await loop.create_server(gateway.lane.protocol, "127.0.0.1", 0)
    gateway.port = server.sockets[0].getsockname()[1]
    try:
        if ready:
            await until(lambda: all(replica.ready for replica in gateway.model.replicas))
        yield gateway
    finally:
        for client in gateway.clients:
            client.transport.abort()
        server.close()
        await gateway.lane.drain(1)
        gateway.sockets.close()
        await fleet.close()
        for fake in fakes:
            await fake.stop()
    assert gateway.counters()["live"] == 0
    for replica in gateway.model.replicas:
        assert (replica.calls.in_flight, replica.calls.work) == (0, 0.0)
    assert fleet.backlog.bytes == 0
