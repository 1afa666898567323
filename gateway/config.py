"""What a gateway serves and how: the keys of its TOML file, checked once and frozen.

Owns every key, its default and its meaning. The file comes first, then the environment
(`PENSTOCK_SERVER__WORKERS=2`), then flags (`--set server.workers=2`); the later wins. Invariant: a
`GatewayConfig` that exists is whole and consistent; everything else is a `ConfigError`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.config_access import KeyConfig, wrong_keys
from gateway.config_canary import CanaryConfig
from gateway.config_generation import GenerationConfig
from gateway.config_lines import Place
from gateway.config_options import Choice, File, Number, Size, Text, Texts, Whole, option
from gateway.config_relay import RelayConfig, RouteConfig, wrong_routes
from gateway.config_source import ConfigError, Problem, Source, table, tables
from gateway.config_tls import ListenTls, ReplicaTls

__all__ = [
    "CanaryConfig",
    "ConfigError",
    "GatewayConfig",
    "GenerationConfig",
    "KeyConfig",
    "ModelConfig",
    "Problem",
    "RelayConfig",
    "ReplicaConfig",
    "RouteConfig",
    "ServerConfig",
    "load",
    "parse",
    "read",
    "split_listen",
]

# A name is a part of paths, labels and file names of sockets (which the kernel keeps short).
NAME = Text("a name of letters, digits and . _ -", r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
# As `policy.routing` has them, which the supervisor does without: it imports little.
ROUTING = ("wlc", "wrr", "random", "p2c", "least-connections", "session", "prefix", "predictive")
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+)"
_LISTEN = re.compile(rf"unix:(?P<path>/.+)|(?P<host>{_HOST}):(?P<port>\d{{1,5}})")
_REPLICA = re.compile(rf"unix:/.+|tcp:{_HOST}:\d{{1,5}}")
_SRV = r"srv://_[A-Za-z0-9-]{1,62}\._tcp\.[A-Za-z0-9._-]{1,200}(?:/[^?#\s]*)?"
_URL = re.compile(rf"https?://{_HOST}(?::\d{{1,5}})?(?:/[^?#\s]*)?|unix:/.+|{_SRV}")
DAY = 86_400.0
# Deadlines of requests that bring none: of tensors, and of what is generated.
SHORT_MS, LONG_MS = 30_000.0, 600_000.0


def split_listen(listen: str) -> tuple[str, int] | str:
    """(host, port), or the path of a UNIX socket. Raises ValueError."""
    match = _LISTEN.fullmatch(listen)
    if match is None:
        raise ValueError(f"{listen!r} is no address")
    if match["path"] is not None:
        return match["path"]
    port = int(match["port"])
    if port > 65_535:
        raise ValueError(f"port {port} is above 65535")
    return match["host"].strip("[]"), port


def _listens(text: str) -> bool:
    try:
        split_listen(text)
    except ValueError:
        return False
    return True


def _is_server(text: str) -> bool:
    from gateway.dns_client import parse_server  # only where one is given: starting is quick

    try:
        parse_server(text)
    except ValueError:
        return False
    return True


ADDRESS = Text('an address: "127.0.0.1:8080", "[::1]:8080" or "unix:/path"', valid=_listens)


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
class _ReplicaTable(ReplicaConfig):
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model that clients name, its replicas and its limits."""

    name: str = option(NAME, "what clients ask for")
    kind: str | None = option(
        Choice("tensor", "llm"),
        "native: what its replicas must be; left out, they say it",
        default=None,
    )
    replicas: tuple[ReplicaConfig, ...] = tables(_ReplicaTable)
    slo_ms: float | None = option(
        Number(above=0.0, most=1e7),
        "answer within so long, or refuse on arrival; left out, no such aim",
        default=None,
    )
    timeout_ms: float = option(
        Number(above=0.0, most=1e8),
        "the deadline of requests that bring none; left out, 30 s, and 10 min of http replicas and "
        "of language models",
        default=None,
    )
    max_queue: int = option(
        Whole(1, 10_000_000), "rows that may wait; more are refused with 429", default=4096
    )
    max_batch_size: int | None = option(
        Whole(1, 1_000_000), "rows in a batch; left out, what the replica says", default=None
    )
    max_batch_elements: int | None = option(
        Whole(1, 2**40),
        "elements of all inputs in a batch, padding included; left out, rows alone are counted",
        default=None,
    )
    routing: str = option(
        Choice(*ROUTING),
        "how a replica is chosen; left out, wlc, and session among http replicas",
        default=None,
    )
    hedge: float | None = option(
        Number(above=0.0, most=0.5),
        "this share of the requests, at most, is sent to a second replica as well when the first "
        "takes longer than nearly all have; for requests that may be done twice; left out, none",
        default=None,
    )
    adaptive_limit: float | None = option(
        Number(above=0.0, most=1000.0),
        "requests may wait so many times as long as they are served; so many are let in at a time "
        "that they do not wait longer, the others are refused with 429; left out, max_queue alone "
        "limits them",
        default=None,
    )
    retries: int = option(
        Whole(0, 16), "further replicas tried before the first byte of an answer", default=2
    )
    rollout: str = option(
        Choice("probation", "swap"),
        "native: a new version goes to one replica after another, once the first of them has had "
        "it through its probation (probation) or has swapped (swap)",
        default="probation",
    )

    relay: RelayConfig = table(RelayConfig)  # noqa: RUF009 - a field
    canary: CanaryConfig = table(CanaryConfig)  # noqa: RUF009 - a field
    generation: GenerationConfig = table(GenerationConfig)  # noqa: RUF009 - a field

    def __post_init__(self) -> None:
        """What is left out goes by the kind of replicas."""
        if self.timeout_ms is None:
            long = self.http or self.kind == "llm"
            object.__setattr__(self, "timeout_ms", LONG_MS if long else SHORT_MS)
        if self.routing is None:
            object.__setattr__(self, "routing", "session" if self.http else "wlc")

    @property
    def http(self) -> bool:
        """Whether it is relayed: its replicas are HTTP servers."""
        return any(replica is not None and replica.kind == "http" for replica in self.replicas)

    @property
    def v1_names(self) -> tuple[str, ...]:
        """What clients of /v1 ask for, as far as the configuration says that it is there."""
        if self.http:
            return (self.relay.names or (self.name,)) if self.relay.api == "openai" else ()
        own = (self.name,) if self.kind == "llm" else ()
        return self.generation.names or own

    @property
    def call_timeout_ms(self) -> float:
        """The deadline of calls that bring none. That a model takes calls may be heard only when
        its replicas are there, so what was left out is not what tensors get."""
        undeclared = self.kind is None and self.timeout_ms == SHORT_MS
        return LONG_MS if undeclared else self.timeout_ms

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.replicas:
            yield "", "a model needs at least one [[models.replicas]]"
        if len({replica.kind for replica in self.replicas}) > 1:
            yield "replicas", "one model has replicas of one kind: all native, or all http"
        elif self.http:
            for key in ("slo_ms", "max_batch_size", "max_batch_elements"):
                if getattr(self, key) is not None:
                    yield key, "only models with native replicas have it"
            if self.routing != "session" and (self.relay.cookie or self.relay.strict):
                yield "routing", 'expected "session": relay.cookie and relay.strict are of sessions'
            addresses = [r.address or "" for r in self.replicas if r is not None]
            if self.relay.tls != ReplicaTls() and not any(
                a.startswith(("https:", "srv://_https.")) for a in addresses
            ):
                yield "relay", "tls is of replicas with https addresses; none has one"
            if self.canary.channel is not None:
                yield "canary", "only models with native replicas follow channels"
            if self.kind is not None:
                yield "kind", "only native replicas say what they are"
            if self.generation != GenerationConfig():
                yield "generation", "only for native replicas; [models.relay] has the like"
        elif self.relay != RelayConfig():
            yield "relay", "only models with http replicas are relayed"
        if self.routing == "prefix" and self.kind != "llm":
            yield "routing", 'prefixes are of prompts: only for models of kind = "llm"'
        if self.kind == "llm":
            for key in (
                "slo_ms",
                "max_batch_size",
                "max_batch_elements",
                "adaptive_limit",
                "hedge",
            ):
                if getattr(self, key) is not None:
                    yield key, 'only models of kind "tensor" have it'
        if self.max_batch_size is not None and self.max_batch_size > self.max_queue:
            yield "max_queue", f"must hold one batch of max_batch_size = {self.max_batch_size} rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Listeners, processes and what a connection may cost."""

    listen: str = option(ADDRESS, "where clients connect", default="127.0.0.1:8080")
    admin: str = option(ADDRESS, "where operators connect", default="127.0.0.1:8081")
    admin_key: str | None = option(
        Text(pattern=r"[\x21-\x7e]{8,}", expected="at least 8 printable characters"),
        "operators must send it: `authorization: Bearer KEY`",
        default=None,
    )
    admin_key_sha256: str | None = option(
        Text("SHA-256 of the operators' key in hexadecimal", r"[0-9a-f]{64}"),
        "instead of admin_key, so that the file holds no secret",
        default=None,
    )
    tls: ListenTls = table(ListenTls)  # noqa: RUF009 - a field
    admin_tls: ListenTls = table(ListenTls)  # noqa: RUF009 - a field
    workers: int = option(Whole(1, 256), "gateway processes that share the port", default=1)
    max_body: int = option(Size(), "the largest request body", default=64 * 2**20)
    max_head: int = option(Size(), "the largest request line and headers", default=32 * 2**10)
    head_timeout_s: float = option(
        Number(above=0.0, most=DAY), "a head must be complete within", default=10.0
    )
    body_timeout_s: float = option(
        Number(above=0.0, most=DAY), "a body may stall for", default=30.0
    )
    idle_timeout_s: float = option(
        Number(above=0.0, most=DAY), "a connection may idle for", default=120.0
    )
    origins: tuple[str, ...] | None = option(
        Texts('origins such as "https://app.example.com"', r"https?://[^/\s]+"),
        "whose pages may open /ws, beside our own and those of this host",
        default=None,
    )
    drain_s: float = option(
        Number(least=0.0, most=DAY), "requests may finish for so long at a stop", default=20.0
    )
    log_level: str = option(
        Choice("debug", "info", "warning", "error"), "what is logged", default="info"
    )

    @property
    def admin_digest(self) -> str | None:
        """SHA-256 of the operators' key in hexadecimal; None where they need none."""
        if self.admin_key is not None:
            return hashlib.sha256(self.admin_key.encode()).hexdigest()
        return self.admin_key_sha256

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.listen == self.admin and not self.listen.endswith(":0"):
            yield "admin", f'"{self.admin}" is "listen" too; operators need an address of their own'
        if self.admin_key and self.admin_key_sha256:
            yield "admin_key_sha256", "give admin_key or its hash, not both"


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The whole file. `path` is where it was read."""

    server: ServerConfig
    models: tuple[ModelConfig, ...]
    path: Path
    routes: tuple[RouteConfig, ...] = ()
    keys: tuple[KeyConfig, ...] = ()

    def replicas(self) -> Iterator[tuple[ModelConfig, ReplicaConfig]]:
        for model in self.models:
            for replica in model.replicas:
                yield model, replica

    def turned(self, turns: Mapping[str, int]) -> GatewayConfig:
        """The same, with these turns of replicas, by name."""
        models = [
            dataclasses.replace(
                model,
                replicas=tuple(
                    dataclasses.replace(replica, turn=turns.get(replica.name, 0))
                    for replica in model.replicas
                ),
            )
            for model in self.models
        ]
        return dataclasses.replace(self, models=tuple(models))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTable:
    """The file's outermost table, as it is written."""

    server: ServerConfig = table(ServerConfig)  # noqa: RUF009 - a field
    models: tuple[ModelConfig, ...] = tables(ModelConfig)
    routes: tuple[RouteConfig, ...] = tables(RouteConfig)
    keys: tuple[KeyConfig, ...] = tables(KeyConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.models:
            yield "models", "there is nothing to serve; add a [[models]] table with a name"


def parse(
    text: str,
    path: Path,
    environ: Mapping[str, str],
    overrides: Sequence[str] = (),
    *,
    check_files: bool = False,
) -> GatewayConfig:
    """The configuration that `text` and its overrides (`key=value`) say. Raises ConfigError.

    `path` is where the text came from: errors name it and relative paths start in its folder.
    `check_files` refuses files that are not there, which only who serves needs to know.
    """
    source = Source(text, path, check_files=check_files)
    source.apply_environment(FileTable, environ)
    source.apply_flags(FileTable, overrides)
    file: FileTable | None = source.read(FileTable)
    models = tuple(_expand(model) for model in file.models) if file is not None else ()
    if file is not None:
        _refuse_equal_names(source, file, models)
        _refuse_equal_v1_names(source, models)
        http = [model.name for model in models if model.http]
        for index, key, wrong in wrong_routes(file.routes, http):
            source.report(("routes", index, key), wrong)
        for index, key, wrong in wrong_keys(file.keys, [model.name for model in models]):
            source.report(("keys", index, key), wrong)
        if check_files:
            _refuse_bad_certificates(source, file)
    source.refuse_if_wrong()
    assert file is not None  # a table that could not be read reported why
    return GatewayConfig(
        server=file.server, models=models, path=path, routes=file.routes, keys=file.keys
    )


def _refuse_bad_certificates(source: Source, file: FileTable) -> None:
    places: list[tuple[Place, ListenTls | ReplicaTls]] = [
        (("server", "tls"), file.server.tls),
        (("server", "admin_tls"), file.server.admin_tls),
        *((("models", at, "relay", "tls"), m.relay.tls) for at, m in enumerate(file.models)),
    ]
    for place, found in places:
        if found != type(found)():
            from gateway.tls import wrong_files  # only where it is needed: starting is quick

            for key, wrong in wrong_files(found):
                source.report((*place, key), wrong)


def load(path: Path, environ: Mapping[str, str], overrides: Sequence[str] = ()) -> GatewayConfig:
    """Read and parse the file, and see that the files it names are there. Raises ConfigError."""
    return parse(read(path), path, environ, overrides, check_files=True)


def read(path: Path) -> str:
    """The text of a configuration file. Raises ConfigError when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    wrong = Problem(origin=str(path), line=None, key="", expected=f"cannot read it: {reason}")
    raise ConfigError(path, [wrong])


def _expand(model: ModelConfig) -> ModelConfig:
    replicas: list[ReplicaConfig] = []
    for written in model.replicas:
        assert isinstance(written, _ReplicaTable)
        replicas += written.expand()
    return dataclasses.replace(model, replicas=tuple(replicas))


def _refuse_equal_v1_names(source: Source, models: Sequence[ModelConfig]) -> None:
    """The body's `model` decides who answers: it must be one."""
    taken: dict[str, str] = {}
    for index, model in enumerate(models):
        for name in model.v1_names:
            if name in taken:
                wrong = f'"{taken[name]}" is "{name}" on /v1 too'
                table = "relay" if model.http else "generation"
                source.report(("models", index, table, "names"), wrong)
            taken.setdefault(name, model.name)


def _refuse_equal_names(source: Source, file: FileTable, models: Sequence[ModelConfig]) -> None:
    """Models and replicas are named in paths and commands: each name stands for one thing."""
    taken: dict[str, str] = {}
    for index, model in enumerate(models):
        if model.name in [other.name for other in models[:index]]:
            source.report(("models", index, "name"), f'another model is named "{model.name}"')
        for position, written in enumerate(file.models[index].replicas):
            assert isinstance(written, _ReplicaTable)
            for replica in written.expand():
                if replica.name in taken:
                    wrong = f'a replica of "{taken[replica.name]}" is named "{replica.name}" too'
                    source.report(("models", index, "replicas", position, "name"), wrong)
                taken[replica.name] = model.name
