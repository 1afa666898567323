"""The keys of replicas: what serves a model, where it listens or how it is started.

Owns these keys, their defaults and their meaning, as `config` does the others.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.config_options import Choice, File, Number, Text, Texts, Whole, option

# A name is a part of paths, labels and file names of sockets (which the kernel keeps short).
NAME = Text("a name of letters, digits and . _ -", r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
# A host in an address; an IPv6 one stands in brackets.
HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+)"
_REPLICA = re.compile(rf"unix:/.+|tcp:{HOST}:\d{{1,5}}")
_SRV = r"srv://_[A-Za-z0-9-]{1,62}\._tcp\.[A-Za-z0-9._-]{1,200}(?:/[^?#\s]*)?"
_URL = re.compile(rf"https?://{HOST}(?::\d{{1,5}})?(?:/[^?#\s]*)?|unix:/.+|{_SRV}")
DAY = 86_400.0


def _is_server(text: str) -> bool:
    from gateway.dns_client import parse_server  # only where one is given: starting is quick

    try:
        parse_server(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """One backend of a model: a process that the supervisor spawns, or one that runs somewhere."""

    name: str = option(NAME, "names the replica in the whole gateway")
    kind: str = option(
        Choice("native", "http"), "native speaks our wire, http anything HTTP", default="native"
    )
    spawn: Path | None = option(  # noqa: RUF009 - a field, as the others
        File(), "the replica's own file: we run `python -m backends serve` with it", default=None
    )
    address: str | None = option(
        Text(),
        'where it listens: "unix:/path", "tcp:host:port" or, for http, a URL or the name of a '
        'service, "srv://_http._tcp.name", that DNS knows',
        default=None,
    )
    weight: float = option(
        Number(least=0.0, most=1e6), "its share of the work beside the others", default=1.0
    )
    command: tuple[str, ...] | None = option(
        Texts("a program and its arguments, {port} or {socket} where it is to listen"),
        "http: a process that we run, in the folder of this file; {python} is our own Python",
        default=None,
    )
    discover: str | None = option(
        Choice("dns"), "http: every address of the URL's host is a replica", default=None
    )
    discover_s: float = option(
        Number(above=0.0, most=DAY), "http: the host is looked up again after", default=10.0
    )
    resolver: str | None = option(
        Text('the address of a DNS server, such as "127.0.0.1:8600"', valid=_is_server),
        "http: whom to ask for a srv:// address; left out, the servers of this host",
        default=None,
    )
    health: str | None = option(
        Text("a path that begins with /", r"/[!-~]*"),
        "http: GET it to see whether the replica is well; left out, it need only accept",
        default=None,
    )
    health_s: float = option(
        Number(above=0.0, most=DAY), "http: how often that is looked at", default=2.0
    )
    replace: str = option(
        Choice("beside", "in_place"),
        "a new process starts beside the old one, or, where the device has no room for two, after",
        default="beside",
    )
    slots: int | None = option(
        Whole(1, 1_000_000),
        "http: requests that it gets at a time, from one worker; left out, any number",
        default=None,
    )

    # No key: how often its process was replaced by one beside it, each with a socket of its own.
    turn: int = 0

    @property
    def spawned(self) -> bool:
        """Whether it is a process of the supervisor's."""
        return self.spawn is not None or self.command is not None

    def socket(self, runtime: Path) -> str:
        """Where a native replica is reached; the sockets of spawned ones lie in `runtime`."""
        if self.address is not None:
            return self.address
        return f"unix:{runtime}/{self.name}{f'.{self.turn}' if self.turn else ''}.sock"

    def __post_init__(self) -> None:
        """A service stands for as many places as DNS says."""
        if self.service is not None and self.discover is None:
            object.__setattr__(self, "discover", "dns")

    @property
    def service(self) -> str | None:
        """The name of its SRV records, if it is found by them."""
        address = self.address or ""
        return address[6:].partition("/")[0] if address.startswith("srv://") else None

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind == "http":
            yield from self._http_problems()
        elif (self.spawn is None) == (self.address is None):
            yield "", 'expected either "spawn" (a file) or "address" (where it listens)'
        else:
            for item in dataclasses.fields(self):
                http_only = item.metadata.get("doc", "").startswith("http: ")
                if http_only and getattr(self, item.name) != item.default:
                    yield item.name, 'only replicas of kind "http" have it'
        if self.address is not None:
            form, example = (
                (_URL, "http://127.0.0.1:8000") if self.kind == "http" else (_REPLICA, "tcp:h:7001")
            )
            if not form.fullmatch(self.address):
                yield "address", f'expected an address such as "{example}", got "{self.address}"'
                if self.kind == "native" and self.address.startswith("tls:"):
                    yield (
                        "address",
                        "the wire to native replicas knows no TLS: keep it on one host or in a "
                        "network that you trust, or tunnel it",
                    )

    def _http_problems(self) -> Iterator[tuple[str, str]]:
        if self.spawn is not None:
            yield (
                "spawn",
                'an http replica is not spawned; give "command" or "address"',
            )
        elif (self.command is None) == (self.address is None):
            yield "", 'expected either "command" (what to run) or "address" (where it listens)'
        if self.command is not None:
            text = "\n".join(self.command)
            if ("{port}" in text) == ("{socket}" in text):
                yield "command", "expected {port} or {socket} in it: where it is to listen"
        if self.resolver is not None and self.service is None:
            yield "resolver", 'needs an "address" such as "srv://_http._tcp.name"'
        if self.discover is not None and not (self.address or "").startswith(("http", "srv:")):
            yield "discover", 'needs an "address" with a host, such as "http://name:8000"'


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTable(ReplicaConfig):
    """`[[models.replicas]]` as it is written: one table may stand for several replicas."""

    count: int | None = option(
        Whole(1, 1024), "spawn so many: name-0, name-1, …; left out, one: name", default=None
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        # No super() in a dataclass with slots: the decorator makes a new class.
        yield from ReplicaConfig.problems(self)
        if self.count is not None and self.address is not None:
            more = ', or found by discover = "dns"' if self.kind == "http" else ""
            yield "count", f'replicas with an "address" are listed one by one{more}'

    def expand(self) -> list[ReplicaConfig]:
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(ReplicaConfig)}
        if self.count is None:
            return [ReplicaConfig(**values)]
        return [
            ReplicaConfig(**{**values, "name": f"{self.name}-{number}"})
            for number in range(self.count)
        ]
