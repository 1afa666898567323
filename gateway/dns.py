"""The places that a name stands for, looked up again and again: addresses of a host, or a service.

Owns one task per name. Invariant: a lookup that fails changes nothing: what was found last is still
the best that is known.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from gateway.dns_client import DnsClient
from gateway.dns_message import Reply, Service

log = logging.getLogger(__name__)

# Until something was found there is nothing to serve with.
FIRST_S = 1.0


class Place(NamedTuple):
    """`name`: what the address was found by; certificates go by it. `weight`: beside the others of
    its rank, 1 on average. `rank`: those of 0 are used as long as one of them can be, then 1, …"""

    host: str
    port: int
    name: str
    weight: float = 1.0
    rank: int = 0


class Found(NamedTuple):
    """`fresh_s`: after it the answer is no longer vouched for."""

    places: tuple[Place, ...]
    fresh_s: float = float("inf")


Find = Callable[[], Awaitable[Found]]


async def addresses_of(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[str]:
    """Every A and AAAA address, in an order that is the same everywhere. Raises OSError."""
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(info[4][0]) for info in found})


def of_host(host: str, port: int) -> Find:
    """Every address of the host is a place."""

    async def find() -> Found:
        hosts = await addresses_of(asyncio.get_running_loop(), host, port)
        return Found(tuple(Place(each, port, host) for each in hosts))

    return find


def of_service(name: str, client: DnsClient) -> Find:
    """Every address of the SRV records, ranked by their priorities (RFC 2782). Weights are shared
    between the addresses of a target. Of ranks behind the first, a target whose addresses cannot
    be found is left out."""

    async def find() -> Found:
        reply = await client.services(name)
        if not reply.services:
            raise OSError(f"{name} has no SRV records")
        places: dict[tuple[str, int], Place] = {}
        for rank, priority in enumerate(sorted({s.priority for s in reply.services})):
            group = sorted(s for s in reply.services if s.priority == priority)
            mean = sum(max(service.weight, 1) for service in group) / len(group)
            for service in group:
                try:
                    hosts = await hosts_of(service, reply)
                except OSError:
                    if not rank:
                        raise
                    continue
                share = max(service.weight, 1) / mean / len(hosts)
                for host in hosts:  # one that stands in two groups is of the first
                    place = Place(host, service.port, service.target, share, rank)
                    places.setdefault((host, service.port), place)
        return Found(tuple(places.values()), float(min(s.ttl for s in reply.services)))

    async def hosts_of(service: Service, reply: Reply) -> list[str]:
        told = reply.addresses.get(service.target)
        if told:
            return sorted(told)
        loop = asyncio.get_running_loop()
        return await addresses_of(loop, service.target, service.port)

    return find


async def follow(
    name: str,
    find: Find,
    every_s: float,
    on_places: Callable[[Sequence[Place]], None],
    rng: random.Random,
) -> None:
    """Report the places, and report them again when they have changed, until cancelled."""
    known: tuple[Place, ...] = ()
    while True:
        wait = every_s if known else min(every_s, FIRST_S)
        try:
            found = await find()
        except OSError as error:
            log.warning("name=%s lookup failed: %s", name, error)
        else:
            wait = min(every_s, max(found.fresh_s, FIRST_S))
            if found.places and found.places != known:
                shown = ",".join(f"{place.host}:{place.port}" for place in found.places)
                log.info("name=%s places=%s", name, shown)
                known = found.places
                on_places(known)
        await asyncio.sleep(wait * rng.uniform(0.9, 1.1))
