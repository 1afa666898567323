"""Both event loops, and a lane on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import uvloop

from gateway.lane import Lane

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on one loop and then on the other; nothing may be left over."""
    errors: list[dict[str, Any]] = []
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: errors.append(context))
        yield lambda coroutine: runner.run(asyncio.wait_for(coroutine, 30))
    assert errors == []


def listening(lane: Lane, **options: Any) -> AbstractAsyncContextManager[int]:
    """The lane on a port of its own; drained at the end."""

    @asynccontextmanager
    async def serve() -> Any:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lane.protocol, "127.0.0.1", 0, **options)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await lane.drain(1)
            await server.wait_closed()
        assert lane.stats.open == lane.stats.handed == 0

    return serve()
