"""Questions to DNS servers: over UDP, again over TCP where the answer is too long for that.

Owns one socket per question. Answers count only from the server that was asked, to the question
that was asked. Names of services are asked for here because the system's resolver knows none.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Sequence
from pathlib import Path

from gateway.dns_message import NXDOMAIN, BadAnswer, Reply, ask, read

PORT = 53
RESOLV = Path("/etc/resolv.conf")
# One server's patience; then the next one is asked.
PATIENCE_S = 2.0
TRIES = 2

Server = tuple[str, int]


class DnsFailed(OSError):
    """No server has answered the question."""


def parse_server(text: str) -> Server:
    """`10.0.0.2`, `10.0.0.2:8600`, `[::1]:53`, `::1`. Raises ValueError."""
    host, port = text, str(PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is no address of a DNS server")
    return host, int(port)


def system_servers(file: Path = RESOLV) -> tuple[list[Server], list[str]]:
    """The host's servers, and the suffixes that it tries."""
    servers: list[Server] = []
    suffixes: list[str] = []
    try:
        lines = file.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split("#")[0].split(";")[0].split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            servers.append((words[1], PORT))
        elif words[:1] in (["search"], ["domain"]):
            suffixes = words[1:]
    return servers or [("127.0.0.1", PORT)], suffixes


class DnsClient:
    """`servers` in the order in which they are asked; `suffixes` are tried behind names that are
    not there, unless these end with a dot."""

    def __init__(self, servers: Sequence[Server], suffixes: Sequence[str] = ()) -> None:
        self._servers, self._suffixes = servers, suffixes

    async def services(self, name: str) -> Reply:
        """The SRV records of a name. Raises DnsFailed."""
        suffixes = () if name.endswith(".") else self._suffixes
        reply = await self._asked(name)
        for suffix in suffixes:
            if reply.services:
                break
            reply = await self._asked(f"{name}.{suffix}")
        return reply

    async def _asked(self, name: str) -> Reply:
        why: Exception | str = "no server is configured"
        for _ in range(TRIES):
            for server in self._servers:
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        reply = await _ask(server, name)
                except (OSError, TimeoutError, BadAnswer, ValueError) as error:
                    why = str(error) or f"{server[0]} did not answer within {PATIENCE_S:g} s"
                    continue
                if reply.code in (0, NXDOMAIN):
                    return reply
                why = f"{server[0]} failed with code {reply.code}"
        raise DnsFailed(f"{name}: {why}")


async def _ask(server: Server, name: str) -> Reply:
    id = secrets.randbelow(1 << 16)
    question = ask(id, name)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _Answers(id, name), remote_addr=server
    )
    try:
        transport.sendto(question)
        reply = await protocol.reply
    finally:
        transport.close()
    if not reply.truncated:
        return reply
    reader, writer = await asyncio.open_connection(*server)
    try:
        writer.write(struct.pack("!H", len(question)) + question)
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        return read(await reader.readexactly(size), id, name)
    except asyncio.IncompleteReadError as error:
        raise BadAnswer("the connection ended in the middle of the answer") from error
    finally:
        writer.close()


class _Answers(asyncio.DatagramProtocol):
    """The first datagram that answers the question; others are nobody's."""

    def __init__(self, id: int, name: str) -> None:
        self._id, self._name = id, name
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            reply = read(data, self._id, self._name)
        except BadAnswer:
            return
        if not self.reply.done():
            self.reply.set_result(reply)

    def error_received(self, exc: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(exc)
