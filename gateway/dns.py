"""The addresses of a host by name, looked up again and again.

Owns one task per name. Invariant: a lookup that fails changes nothing: what was found last is still
the best that is known.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

# Until something was found there is nothing to serve with.
FIRST_S = 1.0


async def addresses_of(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[str]:
    """Every A and AAAA address, in an order that is the same everywhere. Raises OSError."""
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(info[4][0]) for info in found})


async def follow(
    host: str,
    port: int,
    every_s: float,
    on_addresses: Callable[[Sequence[str]], None],
    rng: random.Random,
) -> None:
    """Report the addresses, and report them again when they have changed, until cancelled."""
    loop = asyncio.get_running_loop()
    known: list[str] = []
    while True:
        try:
            found = await addresses_of(loop, host, port)
        except OSError as error:
            log.warning("host=%s lookup failed: %s", host, error)
        else:
            if found and found != known:
                log.info("host=%s addresses=%s", host, ",".join(found))
                known = found
                on_addresses(found)
        await asyncio.sleep((every_s if known else min(every_s, FIRST_S)) * rng.uniform(0.9, 1.1))
