"""The server's connections: who may take part, what they say, and that nobody is waited for.

Owns sockets and handshakes. What an ask or a push means is the `Flow`'s. A worker that is silent
for a lease's time is taken for dead. Invariant: however a connection ends, `left` is called once
for each worker that `joined`.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.server import frames
from trainer.server.frames import PeerBroke, PeerRefused

# A handshake is three small frames; whoever takes longer is no worker of ours.
GREETING_S = 10.0
CONNECTIONS = 64
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Peer:
    """A worker that was let in. `name` is unique among all that ever were."""

    def __init__(self, name: str, writer: asyncio.StreamWriter, hub: Hub) -> None:
        self.name, self._writer, self._hub = name, writer, hub
        self.asks = False

    def send(self, head: dict[str, Any], body: Tensor | None = None) -> None:
        """Never more than an answer to one question is on its way, so nothing piles up."""
        raw = body.numpy().data if body is not None else b""
        self._hub.sent += len(raw)
        self._writer.writelines(part for part in frames.encode(head, raw) if len(part))

    def drop(self) -> None:
        self._writer.transport.abort()


class Flow(Protocol):
    """What the connections are for. All of it on the event loop."""

    def joined(self, peer: Peer) -> None: ...

    def asked(self, peer: Peer, have: int | None) -> None: ...

    def pushed(self, peer: Peer, head: dict[str, Any], body: Tensor) -> None:
        """Raises PeerBroke."""

    def beat(self, peer: Peer) -> None: ...

    def left(self, peer: Peer) -> None: ...


class Hub:
    """`welcome` tells a worker what it should know; `fingerprint` is what it must run, too.

    `sent` and `received` count bytes of weights and contributions.
    """

    def __init__(
        self, flow: Flow, token: str, fingerprint: str, limit: int, lease_s: float
    ) -> None:
        self._flow, self._token, self._fingerprint = flow, token, fingerprint
        self._limit, self._lease = limit, lease_s
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.sent = self.received = 0

    async def listen(self, host: str, port: int) -> str:
        """The address that it listens at. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=2**20)
        bound = self._server.sockets[0].getsockname()
        return f"{host}:{bound[1]}"

    async def close(self) -> None:
        """Ends what workers were told to the last byte; waits for none for long."""
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= CONNECTIONS:
            writer.writelines(frames.encode({"refused": f"{CONNECTIONS} workers are enough"}))
            writer.close()
            return
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, PeerBroke):
            pass  # gone, silent or broken: whatever it held has been given back
        except PeerRefused as error:
            writer.writelines(frames.encode({"refused": str(error)}))
        finally:
            writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(GREETING_S):
            name = await self._greet(reader, writer)
        peer = Peer(f"{name}-{next(self._numbers)}", writer, self)
        peer.send({"welcome": peer.name, "lease_s": self._lease})
        self._flow.joined(peer)
        try:
            while True:
                async with asyncio.timeout(self._lease):
                    head, body = await frames.read(reader, self._limit)
                self._flow.beat(peer)
                self._hear(peer, head, body)
        finally:
            self._flow.left(peer)

    def _hear(self, peer: Peer, head: dict[str, Any], body: bytes) -> None:
        match head.get("type"):
            case "beat":
                pass
            case "ask" if not peer.asks:
                have = head.get("have")
                peer.asks = True
                self._flow.asked(peer, have if isinstance(have, int) else None)
            case "push" if body:
                self.received += len(body)
                # Nobody writes into it; torch would warn of it once a frame.
                packed = torch.frombuffer(bytearray(body), dtype=torch.uint8)
                self._flow.pushed(peer, head, packed)
            case other:
                raise PeerBroke(f"{other!r} was not expected")

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """The worker's name. Raises PeerRefused."""
        mine = frames.nonce()
        writer.writelines(frames.encode({"protocol": frames.PROTOCOL, "nonce": mine}))
        head, _ = await frames.read(reader, 0)
        theirs, name = head.get("nonce"), head.get("name")
        if not isinstance(theirs, str) or not 16 <= len(theirs) <= 64:
            raise PeerRefused("the worker speaks another protocol")
        if not frames.proves(head.get("proof"), self._token, "worker", mine, theirs):
            raise PeerRefused("the worker does not know the run's token")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise PeerRefused("a worker's name is of letters, digits and . _ -")
        if head.get("fingerprint") != self._fingerprint:
            raise PeerRefused("the worker's configuration is another; give both the same file")
        proof = frames.proof(self._token, "server", mine, theirs)
        writer.writelines(frames.encode({"proof": proof}))
        return name
