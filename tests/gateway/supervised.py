"""A supervisor in the test's own loop, over real processes of fake workers and fake replicas."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import aiohttp

from gateway.admin import Admin
from gateway.exposition import render
from gateway.settings import Settings
from gateway.supervisor import Supervisor

HERE = Path(__file__).parent
FAKE_WORKER = (sys.executable, str(HERE / "fake_worker.py"))
FAKE_REPLICA = (sys.executable, str(HERE / "fake_replica.py"))
SERVER = '[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
MODEL = """
[[models]]
name = "m"
[[models.replicas]]
name = "r"
count = 2
spawn = "r.toml"
"""
# Bounds every wait on another process.
PATIENCE_S = 20.0


async def until(condition):
    """Polls, for no event crosses processes; `condition` may be asynchronous."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.01)


class Supervised:
    def __init__(self, folder, supervisor, task):
        self.file = folder / "serve.toml"
        self.supervisor, self.task = supervisor, task

    async def get(self, url, **options):
        """A new connection each time, so that any worker may get it."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(url, **options) as reply,
        ):
            return reply.status, await reply.text()

    async def status(self):
        return await self.supervisor.operations.status()

    def all_up(self):
        supervisor = self.supervisor
        return (
            all(worker.ready for worker in supervisor.workers)
            and supervisor.state == "serving"
            and all((supervisor.runtime / f"{name}.sock").exists() for name in supervisor.replicas)
        )


@contextlib.asynccontextmanager
async def supervised(
    folder, config=MODEL, server="", worker_flags=(), ready=True, head=SERVER, look_at=None
):
    folder.joinpath("serve.toml").write_text(head + server + config)
    if not folder.joinpath("r.toml").exists():
        folder.joinpath("r.toml").write_text("ready\n")
    supervisor = Supervisor(
        Settings.read(folder / "serve.toml"),
        Admin.open,
        version="1.2.3",
        render=render,
        worker_command=(*FAKE_WORKER, *worker_flags),
        replica_command=FAKE_REPLICA,
        look_at=look_at,
    )
    task = asyncio.create_task(supervisor.run())
    running = Supervised(folder, supervisor, task)
    try:
        if ready:
            await until(running.all_up)
        yield running
    finally:
        supervisor.stop(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(task, return_exceptions=True)
