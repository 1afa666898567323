"""What a gateway serves and how: the keys of its TOML file, checked once and frozen.

Owns every key, its default and its meaning. The file comes first, then the environment
(`PENSTOCK_SERVER__WORKERS=2`), then flags (`--set server.workers=2`); the later wins. Invariant: a
`GatewayConfig` that exists is whole and consistent; everything else is a `ConfigError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.config_access import KeyConfig, wrong_keys
from gateway.config_canary import CanaryConfig
from gateway.config_generation import GenerationConfig
from gateway.config_lines import Place
from gateway.config_options import Choice, Number, Whole, option
from gateway.config_relay import RelayConfig, RouteConfig, wrong_routes
from gateway.config_replica import NAME, ReplicaConfig, ReplicaTable
from gateway.config_server import ServerConfig, split_listen
from gateway.config_source import ConfigError, Problem, Source, table, tables
from gateway.config_tls import ListenTls, ReplicaTls

__all__ = [
    "NAME",
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

# As `policy.routing` has them, which the supervisor does without: it imports little.
ROUTING = ("wlc", "wrr", "random", "p2c", "least-connections", "session", "prefix", "predictive")
# Deadlines of requests that bring none: of tensors, and of what is generated.
SHORT_MS, LONG_MS = 30_000.0, 600_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One model that clients name, its replicas and its limits."""

    name: str = option(NAME, "what clients ask for")
    kind: str | None = option(
        Choice("tensor", "llm"),
        "native: what its replicas must be; left out, they say it",
        default=None,
    )
    replicas: tuple[ReplicaConfig, ...] = tables(ReplicaTable)
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
        "takes longer than nearly all have; for requests that may be done twice, never for what is "
        "generated; left out, none",
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
        prompted = self.relay.api == "openai" if self.http else self.kind == "llm"
        if self.routing == "prefix" and not prompted:
            yield (
                "routing",
                'prefixes are of prompts: only for models of kind = "llm", and for http replicas '
                'with relay.api = "openai"',
            )
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
        assert isinstance(written, ReplicaTable)
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
            assert isinstance(written, ReplicaTable)
            for replica in written.expand():
                if replica.name in taken:
                    wrong = f'a replica of "{taken[replica.name]}" is named "{replica.name}" too'
                    source.report(("models", index, "replicas", position, "name"), wrong)
                taken[replica.name] = model.name
