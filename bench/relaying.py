"""Relays under measurement: ours, the floor and the rivals, all before the same scripted upstreams.

Owns who is up and on which core: the relay that is measured has one core for itself, the client and
the upstreams share the others. Relays are started together and measured in turns; a slow one comes
after them, alone. Invariant: a relay whose answers are not the upstream's is not measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.markup import escape

from bench.asking import post
from bench.contenders import JSON, Contender, penstock_listens, start_all
from bench.load.burst import Burst, Generator
from bench.rivals import RELAYS, Rival
from bench.rivals.relays import PATH
from bench.scenarios import Options
from bench.series import MeasureFailed, Series
from bench.serving import Server, python
from bench.upstreams.scripted import CHUNKS, MODEL, whole

OURS, FLOOR, DIRECT = "penstock", "floor", "no relay"
UPSTREAMS = 2
MESSAGES = [
    {"role": "system", "content": "You are a hydraulic engineer. Answer in one sentence."},
    {"role": "user", "content": "What is a penstock, and what is its job in a power station?"},
]


def request(*, stream: bool) -> bytes:
    """What a client posts, as the OpenAI SDK writes it."""
    asked = {"messages": MESSAGES, "model": MODEL, "max_tokens": CHUNKS, "stream": stream}
    return json.dumps(asked, separators=(",", ":")).encode()


@contextmanager
def cores() -> Iterator[int | None]:
    """The relay's core, while this process and its later children keep to the others; None where
    there is but one."""
    all_of_them = sorted(os.sched_getaffinity(0))
    if len(all_of_them) < 2:
        yield None
        return
    os.sched_setaffinity(0, all_of_them[1:])
    try:
        yield all_of_them[0]
    finally:
        os.sched_setaffinity(0, all_of_them)


def launch_upstream(
    folder: Path, name: str, *, port: int = 0, step_ms: float = 0.0, delay_ms: float = 0.0
) -> Server:
    command = python("-m", "bench.upstreams.scripted", "--name", name, "--port", str(port))
    command += ["--step-ms", str(step_ms), "--delay-ms", str(delay_ms)]
    return Server(f"upstream {name}", command, log=folder / f"upstream-{name}.log")


def listens(server: Server) -> int:
    """Its port. Raises ServerFailed."""
    return int(server.wait_said(r"listening on 127.0.0.1:([0-9]+)")[1])


def launch_ours(folder: Path, upstreams: Sequence[int], core: int | None) -> Contender:
    """Defaults throughout: the model's name in the body picks the pool."""
    folder.mkdir(parents=True, exist_ok=True)
    text = '[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
    # As many connections to each upstream as the largest number of streams needs.
    text += f'[[models]]\nname = "{MODEL}"\n[models.relay]\nconnections = 8192\n'
    for index, port in enumerate(upstreams):
        text += f'[[models.replicas]]\nname = "s{index}"\nkind = "http"\nhealth = "/health"\n'
        text += f'address = "http://127.0.0.1:{port}"\n'
    config = folder / "serve.toml"
    config.write_text(text)
    command = python("-m", "gateway", "serve", config)
    server = Server(OURS, command, log=folder / "penstock.log", core=core)
    return Contender(OURS, server, _ready, path=PATH)


def _ready(server: Server) -> str:
    base = penstock_listens(server)[0]
    server.wait_ready(f"{base}/readyz")
    return base


def launch_floor(folder: Path, upstreams: Sequence[int], core: int | None) -> Contender:
    command = python("-m", "bench.floors.relay_floor", *map(str, upstreams))
    server = Server(FLOOR, command, log=folder / "floor.log", core=core)
    return Contender(FLOOR, server, lambda s: f"http://127.0.0.1:{listens(s)}", path=PATH)


def check(contender: Contender, *, stream: bool) -> None:
    """Raises MeasureFailed when an answer is not the script's."""
    body = post(contender.url, request(stream=stream), JSON).decode()
    try:
        said = _streamed(body) if stream else json.loads(body)["choices"][0]["message"]["content"]
        wanted = json.loads(whole())["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise MeasureFailed(f"answered {body[:200]!r}") from error
    if stream:
        wanted = " ".join(wanted.split()[: CHUNKS - 2])
    if said.strip() != wanted:
        raise MeasureFailed(f"answered wrongly: {said[:200]!r}")


def _streamed(body: str) -> str:
    """The text of a stream that came whole. Raises ValueError, LookupError, TypeError."""
    *events, last = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    if last != "[DONE]":
        raise ValueError("the stream did not end")
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content") or "" for delta in deltas)


@dataclass(slots=True)
class Contest:
    """The relays that are up, and bursts on them. `cpu`: µs of the relay's CPU a request, `memory`:
    MB of its processes, both at the last metered burst."""

    options: Options
    stack: ExitStack
    core: int | None
    rivals: Sequence[str]
    stream: bool
    generator: Generator = field(default_factory=Generator)
    up: dict[str, Contender] = field(default_factory=dict[str, Contender])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    cpu: dict[str, float] = field(default_factory=dict[str, float])
    memory: dict[str, float] = field(default_factory=dict[str, float])
    limits: dict[str, str] = field(default_factory=dict[str, str])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    ports: list[int] = field(default_factory=list[int])
    upstreams: list[Server] = field(default_factory=list[Server])

    def start_upstreams(
        self, count: int = UPSTREAMS, *, step_ms: float = 0.0, delay_ms: float = 0.0
    ) -> None:
        for index in range(count):
            server = launch_upstream(
                self.options.folder, f"s{index}", step_ms=step_ms, delay_ms=delay_ms
            )
            self.upstreams.append(self.stack.enter_context(server))
        self.ports = [listens(server) for server in self.upstreams]

    @property
    def names(self) -> list[str]:
        return [OURS, FLOOR, DIRECT, *self.rivals]

    @property
    def near(self) -> list[str]:
        return [OURS, FLOOR, *(name for name in self.rivals if not RELAYS[name].slow)]

    @property
    def far(self) -> list[str]:
        return [name for name in self.rivals if RELAYS[name].slow]

    def start(self, names: Sequence[str]) -> list[str]:
        """The names of those that serve and answer rightly."""
        launches = {name: self._launch(name) for name in names}
        console = self.options.console
        with console.status(f"starting {', '.join(launches)} ..."):
            started, failed = start_all(self.stack, launches)
        for name, error in failed.items():
            self.failures[name] = str(error)
            if error.said:
                console.print(f"[yellow]{name} said:\n{escape(error.said)}")
        good = []
        for name, contender in started.items():
            self.versions |= contender.versions
            try:
                check(contender, stream=self.stream)
            except MeasureFailed as error:
                self.failures[name] = str(error)
                contender.server.stop()
            else:
                self.up[name] = contender
                good.append(name)
        return good

    def _launch(self, name: str) -> Callable[[], Contender]:
        folder = self.options.folder / name
        if name == OURS:
            return partial(launch_ours, folder, self.ports, self.core)
        if name == FLOOR:
            return partial(launch_floor, folder, self.ports, self.core)
        rival: Rival = RELAYS[name]
        return partial(rival.launch, folder, self.ports, self.core)

    def add_direct(self) -> str:
        """The first upstream itself: what the client and the upstreams' core can carry."""
        base = f"http://127.0.0.1:{self.ports[0]}"
        self.up[DIRECT] = Contender(DIRECT, self.upstreams[0], lambda s: base, path=PATH, base=base)
        return DIRECT

    def stop(self, name: str) -> None:
        self.up.pop(name).server.stop()

    def burst(self, name: str, connections: int, seconds: int, *, metered: bool = False) -> Burst:
        contender = self.up[name]
        before = contender.server.cpu_seconds()
        burst = self.generator.burst(
            contender.url,
            request(stream=self.stream),
            JSON,
            connections=connections,
            seconds=seconds,
        )
        if metered and name != DIRECT:
            used = contender.server.cpu_seconds() - before
            self.cpu[name] = used / burst.ok * 1e6
            self.memory[name] = contender.server.rss_bytes() / 1e6
        if burst.limit is not None:
            self.limits[name] = burst.limit
        return burst

    def detail(self, series: Sequence[Series]) -> Mapping[str, object]:
        return {
            "repetitions": {one.metric: one.to_json() for one in series},
            "cpu_us_per_request": self.cpu,
            "rss_mb": self.memory,
            "generator": self.generator.name,
            "generator_limits": self.limits,
            "one_core_each": self.core is not None,
        }
