"""Replicas that run in the test's own event loop, and runs to follow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.checkpoint import Run
from backends.config import parse
from backends.tensor.replica import TensorReplica


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for the name of a UNIX socket."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def run(folder: Path) -> Run:
    return Run(folder / "run")


@pytest.fixture
def serve(folder: Path) -> Callable[..., AbstractAsyncContextManager[TensorReplica]]:
    """`async with serve('class = "…"') as replica`: `replica.address`, `replica.log` (events)."""

    @asynccontextmanager
    async def serve(text: str, **keys: Any) -> Any:
        overrides = [f"{key}={value}" for key, value in keys.items()]
        config = parse(f'model = "m"\ndevice = "cpu"\n{text}', folder / "r.toml", {}, overrides)
        log: list[tuple[str, dict[str, Any]]] = []
        replica: Any = TensorReplica(config, lambda event, **fields: log.append((event, fields)))
        replica.log = log
        replica.address = await replica.server.listen(f"unix:{folder}/r.sock")
        replica.start()
        try:
            yield replica
        finally:
            await replica.close()
            assert replica.join(10)

    return serve
