"""The operators' listener: status, metrics, events and switches over HTTP, on its own address.

Owns paths, the key and the form of errors; what is done is `operations`. With `server.admin_key`
set, everything but /healthz wants it. Browsers may look but not switch: a page of some other site
could send a POST as well.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from gateway.config import ServerConfig
from gateway.control import ControlError
from gateway.listening import Listening
from gateway.operations import Operations
from gateway.tls import LOOK_S, BadCertificate, for_listener, stamp

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
MAX_BODY = 64 * 1024

log = logging.getLogger("penstock.admin")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Admin:
    """`open` starts it on a bound socket; `close` lets calls end."""

    def __init__(self, operations: Operations, listening: Listening, server: ServerConfig) -> None:
        self._operations, self._digest = operations, server.admin_digest
        self._socket, self._tls = listening.sockets[0], server.admin_tls
        self._site: web.SockSite | None = None
        self._watch: asyncio.Task[None] | None = None
        app = web.Application(middlewares=[self._errors, self._guard], client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/status", self._status),
                web.get("/metrics", self._metrics),
                web.get("/events", self._events),
                web.post("/replicas/{name}/drain", self._drain),
                web.post("/replicas/{name}/undrain", self._undrain),
                web.post("/replicas/{name}/weight", self._weight),
                web.post("/models/{name}/reload", self._reload),
                web.post("/models/{name}/replace", self._replace),
                web.post("/models/{name}/promote", self._promote),
                web.post("/models/{name}/rollback", self._rollback),
                web.post("/config/reload", self._reread),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)

    @classmethod
    async def open(
        cls, operations: Operations, listening: Listening, server: ServerConfig
    ) -> Admin:
        admin = cls(operations, listening, server)
        await admin._runner.setup()
        await admin._start()
        if server.admin_tls.used:
            admin._watch = asyncio.get_running_loop().create_task(admin._watch_certificates())
        return admin

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await self._runner.cleanup()

    async def _start(self) -> None:
        """On the same socket as before, with the certificates that are there now. Raises
        BadCertificate."""
        context = for_listener(self._tls) if self._tls.used else None
        old, own = self._site, self._socket.dup()
        self._site = web.SockSite(self._runner, own, ssl_context=context)
        await self._site.start()
        if old is not None:
            await old.stop()

    async def _watch_certificates(self) -> None:
        seen = stamp(self._tls)
        while True:
            await asyncio.sleep(LOOK_S)
            if (now := stamp(self._tls)) == seen:
                continue
            seen = now
            try:
                await self._start()
            except BadCertificate as error:
                log.error("the admin certificate stays: %s: %s", error.key, error.message)

    # -------------------------------------------------------------------------------- middleware

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ControlError as error:
            return _json({"error": error.message, "code": error.code}, error.status)
        except web.HTTPException as error:
            answer = _json(
                {"error": f"{request.method} {request.path}: {error.reason}"}, error.status
            )
            if "Allow" in error.headers:
                answer.headers["Allow"] = error.headers["Allow"]
            return answer

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._digest is not None and request.path != "/healthz":
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            digest = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).hexdigest()
            if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._digest):
                raise ControlError(
                    "send the key of server.admin_key: authorization: Bearer KEY",
                    status=401,
                    code="unauthorized",
                )
        if request.method == "POST" and "origin" in request.headers:
            raise ControlError("not from a web page", status=403, code="forbidden")
        return await handler(request)

    # ------------------------------------------------------------------------------------- views

    async def _healthz(self, request: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def _status(self, request: web.Request) -> web.Response:
        return _json(await self._operations.status())

    async def _metrics(self, request: web.Request) -> web.Response:
        text = await self._operations.metrics()
        return web.Response(body=text.encode(), headers={"content-type": PROMETHEUS})

    async def _events(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not after.isdecimal():
            raise _bad(f"after: expected the id of an event, got {after!r}")
        return _json({"events": self._operations.events.since(int(after))})

    # ---------------------------------------------------------------------------------- switches

    async def _drain(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._operations.drain(name)
        return _json({"replica": name, "drained": True})

    async def _undrain(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        await self._operations.undrain(name)
        return _json({"replica": name, "drained": False})

    async def _weight(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            body: Any = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            raise _bad(f"the body is not JSON: {error}") from error
        weight = body.get("weight") if isinstance(body, dict) and len(body) == 1 else None
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise _bad('the body must be {"weight": NUMBER}')
        if not (math.isfinite(weight) and 0 <= weight <= 1e6):
            raise _bad(f"weight: expected a number from 0 to 1000000, got {weight:g}")
        await self._operations.weight(name, float(weight))
        return _json({"replica": name, "weight": float(weight)})

    async def _reload(self, request: web.Request) -> web.Response:
        return _json(await self._operations.reload(request.match_info["name"]))

    async def _replace(self, request: web.Request) -> web.Response:
        return _json(await self._operations.replace(request.match_info["name"]))

    async def _promote(self, request: web.Request) -> web.Response:
        return _json(await self._operations.promote(request.match_info["name"]))

    async def _rollback(self, request: web.Request) -> web.Response:
        data = await request.read()
        try:
            body: Any = orjson.loads(data) if data else {}
        except orjson.JSONDecodeError as error:
            raise _bad(f"the body is not JSON: {error}") from error
        version = body.get("version", "") if isinstance(body, dict) else None
        if not isinstance(version, str) or set(body) - {"version"}:
            raise _bad('the body must be {"version": "NAME"}, or nothing')
        return _json(await self._operations.rollback(request.match_info["name"], version))

    async def _reread(self, request: web.Request) -> web.Response:
        return _json({"changed": await self._operations.reread()})


def _bad(message: str) -> ControlError:
    return ControlError(message, status=400, code="invalid_request")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
