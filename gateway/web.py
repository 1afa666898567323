"""The second lane: what is not inference, as an aiohttp application.

Owns the public listener's pages: dashboard, metrics, status. It answers for the whole
gateway, whichever worker is asked, by asking the supervisor; it never touches an inference request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import orjson
from aiohttp import web

STATIC = Path(__file__).parent / "static"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Whole(Protocol):
    """The gateway as a whole, over all its workers."""

    async def status(self) -> dict[str, Any]: ...
    async def metrics(self) -> str: ...


def make_app(whole: Whole) -> web.Application:
    async def status(request: web.Request) -> web.Response:
        return _json(await whole.status())

    async def metrics(request: web.Request) -> web.Response:
        text = await whole.metrics()
        return web.Response(body=text.encode(), headers={"content-type": PROMETHEUS})

    async def dashboard(request: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / "index.html")

    app = web.Application(middlewares=[_errors_as_json])
    app.router.add_get("/status.json", status)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/", dashboard)
    app.router.add_static("/static", STATIC)
    return app


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        text = f"{request.method} {request.path}: {error.reason}"
        answer = _json({"error": text}, error.status)
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
