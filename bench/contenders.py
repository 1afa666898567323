"""Who is measured: the product as a user would start it, the floors, and the rivals.

Owns how each is launched and where it listens. `launch_…` returns at once, so that several load
their torch together; `ready` waits. A launch that cannot be is a ServerFailed with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.bodies import oip_answer, oip_request
from bench.serving import ROOT, Server, ServerFailed, python

MODELS = ROOT / "bench" / "models"
JSON = {"content-type": "application/json"}


@dataclass(slots=True)
class Contender:
    """A server that was launched. `wait` blocks until it serves and returns its base URL; `path`
    is where `small-tensor` posts to, `request` and `answer` are how it writes and reads."""

    name: str
    server: Server
    wait: Callable[[Server], str]
    path: str = "/v2/models/mlp/infer"
    request: Callable[[NDArray[np.float32]], bytes] = oip_request
    answer: Callable[[bytes], NDArray[np.float32]] = oip_answer
    versions: Mapping[str, str] = field(default_factory=dict)
    base: str = ""

    def ready(self) -> None:
        """Raises ServerFailed."""
        self.base = self.wait(self.server)

    @property
    def url(self) -> str:
        return self.base + self.path


def launch_penstock(
    folder: Path,
    *,
    models: Sequence[str] = ("mlp",),
    workers: int = 1,
    replicas: int = 1,
    name: str = "penstock",
    server: str = "",
) -> Contender:
    """`python -m gateway serve`, defaults throughout; each model has `replicas` spawned ones.
    `server` is more text for the configuration's [server] table."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "serve.toml"
    text = f'[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\nworkers = {workers}\n{server}'
    for model in models:
        replica = MODELS / f"{model}.replica.toml"
        text += f'\n[[models]]\nname = "{model}"\n[[models.replicas]]\nname = "{model}"\n'
        text += f'spawn = "{replica}"\n' + (f"count = {replicas}\n" if replicas > 1 else "")
    config.write_text(text)
    command = python("-m", "gateway", "serve", config)
    started = Server(name, command, log=folder / "penstock.log")
    return Contender(name, started, _penstock_ready)


def _penstock_ready(server: Server) -> str:
    base = penstock_listens(server)[0]
    server.wait_ready(f"{base}/readyz")
    return base


def penstock_listens(server: Server, *, every: float = 0.02) -> tuple[str, str]:
    """The URLs for clients and for operators, as the gateway's log says them."""
    said = server.wait_said(r"listening on (http://\S+), admin on (http://\S+)", every=every)
    return said[1], said[2]


def launch_tensor_floor(folder: Path) -> Contender:
    command = python("-m", "bench.floors.tensor_floor")
    return Contender("floor", Server("floor", command, log=folder / "floor.log"), _floor_ready)


def _floor_ready(server: Server) -> str:
    return f"http://{server.wait_said(r'listening on (127.0.0.1:[0-9]+)')[1]}"


def start_all(
    stack: ExitStack, launches: Mapping[str, Callable[[], Contender]]
) -> tuple[dict[str, Contender], dict[str, ServerFailed]]:
    """Launch all, then wait for all: those that serve, and why the others do not. `stack` stops
    them."""
    launched: dict[str, Contender] = {}
    failures: dict[str, ServerFailed] = {}
    for name, launch in launches.items():
        try:
            launched[name] = launch()
        except ServerFailed as error:
            failures[name] = error
        else:
            stack.enter_context(launched[name].server)
    for name, contender in list(launched.items()):
        try:
            contender.ready()
        except ServerFailed as error:
            failures[name] = error
            contender.server.stop()
            del launched[name]
    return launched, failures
