"""One gateway worker: an event loop with its lane, its models and their replicas.

The only wiring of a worker process. It gets a listening socket and a control channel from the
supervisor, waits for `configure`, and serves until `stop` or until the channel closes. Owns every
task of the process; loads no torch.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from gateway.admit import Admittance
from gateway.config import GatewayConfig, parse
from gateway.control import ControlChannel, ControlError
from gateway.entrance import Entrance
from gateway.fleet import Fleet
from gateway.generation.generate import acts
from gateway.generation.socket import opener
from gateway.health import HealthSurface
from gateway.lane import Handler, Lane, Limits
from gateway.measures import lane_families
from gateway.oip import OipSurface
from gateway.openapi import beyond
from gateway.tenants import Tenants
from gateway.tls import LOOK_S, BadCertificate, stamp
from gateway.web import make_app
from gateway.whole import WholeGateway
from gateway.ws import SocketLimits, WebSocketSurface

# A replica that is up answers within a few milliseconds; nobody waits longer for one that is not.
MEET_S = 0.5
LAST_CALL_S = 0.05
# What a thread beside the loop may run before the loop has its turn: it runs for one thing only, a
# large configuration.
TURN_S = 0.5e-3

log = logging.getLogger("penstock.worker")


@dataclass(slots=True)
class Serving:
    """What a configured worker consists of."""

    whole: WholeGateway
    admit: Admittance
    fleet: Fleet
    lane: Lane
    sockets: WebSocketSurface
    pages: web.AppRunner
    entrance: Entrance
    certificates: asyncio.Task[None]

    async def close(self) -> None:
        self.certificates.cancel()
        self.entrance.close()
        self.sockets.close()
        await self.whole.close()
        await self.pages.cleanup()
        await self.fleet.close()


class Worker:
    """`listening`: the socket to accept on, bound by the supervisor."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._serving: Serving | None = None
        self._stopped = asyncio.Event()
        self._changing = asyncio.Lock()
        self._control: ControlChannel
        self._config: GatewayConfig

    async def run(self, control: socket.socket) -> None:
        handlers = {
            "configure": self._configure,
            "accept": self._accept,
            "reconfigure": self._reconfigure,
            "status": self._status,
            "metrics": self._metrics,
            "drain": self._drain,
            "undrain": self._undrain,
            "weight": self._weight,
            "renewed": self._renewed,
            "statistics": self._statistics,
            "load": self._load,
            "unload": self._unload,
            "stop": self._stop,
        }
        self._control = await ControlChannel.open(control, handlers)
        # A worker without a supervisor has nobody to stop it: it goes too.
        ends = [
            asyncio.ensure_future(self._control.closed.wait()),
            asyncio.ensure_future(self._stopped.wait()),
        ]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            if self._serving is not None:
                await self._serving.close()
            self._control.close()

    # -------------------------------------------------------------------------- control operations

    async def _configure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        config = _parse(arguments)
        logging.getLogger().setLevel(config.server.log_level.upper())
        loop = asyncio.get_running_loop()
        whole = WholeGateway(self._control)
        tenants = Tenants(loop.time, Path(arguments["runtime"]))
        fleet = Fleet(
            config,
            Path(arguments["runtime"]),
            gateway=f"worker-{os.getpid()}",
            loop=loop,
            switch=whole.switch,
            rng=random.Random(),
            weight=tenants.weight,
        )
        app = make_app(whole)
        pages = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await pages.setup()
        assert pages.server is not None
        surface = OipSurface(
            fleet,
            gather=whole.statistics,
            generative=acts(fleet),
            beyond=lambda: beyond(fleet.offered()),
        )
        sockets = WebSocketSurface(
            fleet,
            SocketLimits(max_message=config.server.max_body),
            streams={"generate": opener(fleet, fleet.backlog)},
            origins=config.server.origins or (),
        )

        health = HealthSurface(fleet.readiness)
        relay = fleet.http.surface

        def resolve(method: str, path: str) -> Handler | None:
            # Routes first: they may lead below the gateway's own paths.
            return (
                relay.resolve(method, path)
                or surface.resolve(method, path)
                or sockets.resolve(method, path)
                or health.resolve(method, path)
            )

        lane = Lane(resolve, pages.server, _limits(config))
        admit = Admittance(tenants, relay)
        admit.apply(config, lane)
        _spare_the_collector()
        entrance = Entrance(self._listening, lane.protocol, config.server.tls)
        watch = loop.create_task(self._watch_certificates(), name="watch certificates")
        self._config = config
        self._serving = Serving(whole, admit, fleet, lane, sockets, pages, entrance, watch)
        return {"pid": os.getpid()}

    async def _accept(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Take clients in, once the replicas that are there have been met: a worker that replaces
        another one must not answer that there is none."""
        serving = self._now()
        await serving.fleet.met(MEET_S)
        await serving.entrance.open()
        return {}

    async def _reconfigure(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The supervisor has checked it; listeners and the lane's limits stay until a restart."""
        serving = self._now()
        async with self._changing:
            # Beside the requests: thousands of keys take half a second to read.
            config = await asyncio.to_thread(_parse, arguments)
            serving.fleet.apply(config)
            serving.admit.apply(config, serving.lane)
            self._config = config
            await serving.entrance.renew()
        return {}

    async def _watch_certificates(self) -> None:
        """Those of the listener, and those of the replicas: a fleet that is told the same again
        keeps what is the same."""
        seen = _stamps(self._config)
        while True:
            await asyncio.sleep(LOOK_S)
            now = _stamps(self._config)
            if now == seen:
                continue
            seen = now
            try:
                self._now().fleet.apply(self._config)
                await self._now().entrance.renew()
            except BadCertificate as error:
                log.error("certificates stay as they were: %s: %s", error.key, error.message)

    async def _status(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid(), "models": self._now().fleet.status()}

    async def _metrics(self, arguments: dict[str, Any]) -> dict[str, Any]:
        serving = self._now()
        lane, sockets = lane_families(serving.lane.stats), serving.sockets.stats.families()
        admit = serving.admit.families()
        return {"families": [*serving.fleet.families(), *lane, *sockets, *admit]}

    async def _drain(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._now().fleet.drain(arguments["replica"])
        return {}

    async def _undrain(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._now().fleet.undrain(arguments["replica"])
        return {}

    async def _weight(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._now().fleet.set_weight(arguments["replica"], float(arguments["weight"]))
        return {}

    async def _renewed(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._now().fleet.http.renewed(arguments["replica"])
        return {}

    async def _statistics(self, arguments: dict[str, Any]) -> dict[str, Any]:
        models = self._now().fleet.models()
        return {"models": {model.name: model.stats.to_json() for model in models}}

    async def _load(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._now().fleet.model(arguments["model"]).serve(True)
        return {}

    async def _unload(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._now().fleet.model(arguments["model"]).serve(False)
        return {}

    async def _stop(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Take no more, let what is there end within the grace, then go."""
        if self._serving is not None:
            grace_s = arguments["grace_s"]
            self._serving.fleet.http.say_goodbye()
            drained = asyncio.gather(
                self._serving.lane.drain(grace_s), self._serving.sockets.drain(grace_s)
            )
            if self._serving.entrance.is_open:
                # Clients that the kernel has let in already are answered, and told to close.
                await asyncio.sleep(LAST_CALL_S)
                self._serving.entrance.close()
            await drained
        self._stopped.set()
        return {}

    def _now(self) -> Serving:
        if self._serving is None:
            raise ControlError("the worker is not configured yet", status=503, code="not_ready")
        return self._serving


def _spare_the_collector() -> None:
    """Requests leave no cycles behind (a test holds it), so that young collections find nothing:
    look less often. What is there at the start stays and need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def _parse(arguments: dict[str, Any]) -> GatewayConfig:
    config = parse(
        arguments["text"], Path(arguments["path"]), os.environ, arguments.get("overrides", ())
    )
    return config.turned(arguments.get("turns", {}))


def _stamps(config: GatewayConfig) -> object:
    return stamp(config.server.tls), [stamp(model.relay.tls) for model in config.models]


def _limits(config: GatewayConfig) -> Limits:
    server = config.server
    return Limits(
        max_body=server.max_body,
        max_head=server.max_head,
        head_timeout_s=server.head_timeout_s,
        body_timeout_s=server.body_timeout_s,
        idle_timeout_s=server.idle_timeout_s,
    )


def main(listen_fd: int, control_fd: int) -> int:
    """The process's entry; the supervisor passes both descriptors."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.setswitchinterval(TURN_S)

    async def run() -> None:
        await Worker(socket.socket(fileno=listen_fd)).run(socket.socket(fileno=control_fd))

    uvloop.run(run())
    return 0
