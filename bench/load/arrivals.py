"""When the requests of an open loop are due, and their bytes.

Pure but for its seed. Invariant: times never go back; the mean rate is the one that was asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from bench.load import trace
from bench.load.spec import LoadSpec
from bench.load.trace import Recorded

# Bursts: as busy as these shares of the rate in turns, each held for a second on average.
CALM, BUSY, HELD_S = 0.4, 1.6, 1.0

Due = Iterator[tuple[float, bytes]]


def arrivals(spec: LoadSpec, request: bytes, render: Callable[[LoadSpec], bytes]) -> Due:
    """(seconds from the start, bytes to send). Raises ValueError, OSError."""
    if spec.trace is not None:
        return _recorded(spec, request, render)
    assert spec.rate is not None
    rng = random.Random(spec.seed)
    ways = {"poisson": _poisson, "constant": _constant, "bursts": _bursts}
    return ((at, request) for at in ways[spec.arrivals](spec.rate, rng))


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


def _constant(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += 1 / rate
        yield at


def _bursts(rate: float, rng: random.Random) -> Iterator[float]:
    """Poisson of two rates: a Markov-modulated process."""
    at, share, other = 0.0, CALM, BUSY
    while True:
        end = at + rng.expovariate(1 / HELD_S)
        while (at := at + rng.expovariate(share * rate)) < end:
            yield at
        at, share, other = end, other, share


def _recorded(spec: LoadSpec, request: bytes, render: Callable[[LoadSpec], bytes]) -> Due:
    assert spec.trace is not None
    for one in trace.part(trace.read(Path(spec.trace)), spec.part, spec.parts):
        sent = request
        if one != Recorded(one.at):
            url = spec.url
            if one.path is not None:
                parts = urlsplit(spec.url)
                url = urlunsplit((parts.scheme, parts.netloc, one.path, "", ""))
            body = spec.body if one.body is None else one.body
            headers = {**spec.headers, **one.headers}
            method = one.method or spec.method
            if one.method is None and one.body is not None and method == "GET":
                method = "POST"
            sent = render(replace(spec, url=url, body=body, headers=headers, method=method))
        yield one.at / spec.speed, sent
