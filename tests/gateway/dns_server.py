"""A DNS server in the test's own loop: answers what it is told to, on UDP and TCP."""

from __future__ import annotations

import asyncio
import ipaddress
import struct

A, SRV = 1, 33


def name(text: str) -> bytes:
    labels = [label.encode() for label in text.rstrip(".").split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def srv(priority: int, weight: int, port: int, target: str) -> bytes:
    return struct.pack("!HHH", priority, weight, port) + name(target)


class DnsServer(asyncio.DatagramProtocol):
    """`services`: SRV data by name; `hosts`: addresses that are told beside. `truncates`: whole
    answers only over TCP. `silent`: none at all. `lies`: with another question's id first."""

    def __init__(self) -> None:
        self.services: dict[str, list[bytes]] = {}
        self.hosts: dict[str, list[str]] = {}
        self.ttl = 60
        self.truncates = self.silent = self.lies = False
        self.code = 0
        self.asked: list[str] = []
        self.over_tcp = 0

    async def start(self) -> int:
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._tcp.sockets[0].getsockname()[1]
        address = ("127.0.0.1", self.port)
        self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=address)
        return self.port

    async def stop(self) -> None:
        self._udp.close()
        self._tcp.close()
        await asyncio.sleep(0)

    def connection_made(self, transport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr) -> None:
        if self.silent:
            return
        if self.lies:
            wrong = bytes((data[0] ^ 1,)) + data[1:]
            self._transport.sendto(self.answer(wrong, truncated=False), addr)
        self._transport.sendto(self.answer(data, truncated=self.truncates), addr)

    async def _connected(self, reader, writer) -> None:
        self.over_tcp += 1
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        answer = self.answer(await reader.readexactly(size), truncated=False)
        writer.write(struct.pack("!H", len(answer)) + answer)
        await writer.drain()
        writer.close()

    def answer(self, data: bytes, *, truncated: bool) -> bytes:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        question = data[12 : at + 5]
        asked = ".".join(labels)
        self.asked.append(asked)
        found = [] if truncated else self.services.get(asked, [])
        hosts = [(h, a) for h, all_ in self.hosts.items() for a in all_] if found else []
        code = self.code or (0 if asked in self.services else 3)
        flags = 0x8180 | (0x0200 if truncated else 0) | code
        out = struct.pack("!2s5H", data[:2], flags, 1, len(found), 0, len(hosts)) + question
        for record in found:  # by a pointer to the question's name
            out += struct.pack("!HHHIH", 0xC00C, SRV, 1, self.ttl, len(record)) + record
        for host, address in hosts:
            packed = ipaddress.ip_address(address).packed
            out += name(host) + struct.pack("!HHIH", A, 1, self.ttl, len(packed)) + packed
        return out
