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

log = logging.getLogger(__name__)

# Until something was found there is nothing to serve with.
FIRST_S = 1.0


class Place(NamedTuple):
    """`name`: what the address was found by; certificates go by it. `weight`: beside the others of
    the name, 1 on average."""

    host: str
    port: int
    name: str
    weight: float = 1.0


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
    """Every address of the SRV records of the lowest priority, which is the one to use (RFC 2782).
    Weights are shared between the addresses of a target."""

    async def find() -> Found:
        reply = await client.services(name)
        if not reply.services:
            raise OSError(f"{name} has no SRV records")
        lowest = min(service.priority for service in reply.services)
        used = [service for service in reply.services if service.priority == lowest]
        weights = [max(service.weight, 1) for service in used]
        mean = sum(weights) / len(weights)
        places: list[Place] = []
        for service, weight in sorted(zip(used, weights, strict=True)):
            hosts = reply.addresses.get(service.target) or await addresses_of(
                asyncio.get_running_loop(), service.target, service.port
            )
            share = weight / mean / len(hosts)
            places += [Place(h, service.port, service.target, share) for h in sorted(hosts)]
        return Found(tuple(places), float(min(service.ttl for service in used)))

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
