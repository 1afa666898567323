"""A gateway whose replicas follow a run, and versions that are published to it meanwhile.

Owns their files and processes. Used by the scenarios of reloads; measures nothing itself but the
replicas' memory.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from bench.contenders import penstock_listens
from bench.publisher import ASKED, STEP_BACK, TEXT, Publisher, kind_of
from bench.serving import ROOT, Server, python

MODELS = Path(__file__).resolve().parent / "models"
# Replicas of a busy machine start slowly.
LOOK_S, START_S = 0.02, 150.0
PATIENCE_S = 60.0
# Versions that are asked for one by one end with who asks.
MOST = 1_000_000


class Following:
    """`what` is what `bench.publisher` publishes; the model's name is the folder's."""

    def __init__(self, folder: Path, what: str, seed: int, server: Server) -> None:
        self._run, self._what, self._seed, self._server = folder / "run", what, seed, server
        self.clients, self._admin = penstock_listens(server)
        self.model, self.text = folder.name, what == TEXT
        server.wait_ready(f"{self.clients}/readyz", START_S)
        server.wait(
            "all replicas", lambda: all(r["state"] == "ready" for r in self.replicas()), START_S
        )

    @property
    def log(self) -> str:
        return self._server.log

    def replicas(self) -> list[dict[str, Any]]:
        with urlopen(f"{self._admin}/status", timeout=5) as reply:
            found: list[dict[str, Any]] = json.load(reply)["models"][0]["replicas"]
        return found

    def megabytes(self) -> float | None:
        """Resident memory of all replicas; None while one of them is away."""
        total = 0.0
        for replica in self.replicas():
            try:
                text = Path(f"/proc/{replica['pid']}/status").read_text()
            except FileNotFoundError:
                return None
            total += int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024
        return total

    async def publish(
        self, count: int, every_s: float, published: Callable[[str], None] = lambda _: None
    ) -> None:
        """Calls `published` with each version. Returns when every replica serves the last one."""
        version = ""
        async with self._publisher(str(count), str(every_s), before=STEP_BACK) as process:
            assert process.stdout is not None
            async for line in process.stdout:
                version = line.decode().strip()
                published(version)
        await self.until_served(version)

    async def publish_unfollowed(self, count: int, every_s: float) -> None:
        """The same work, into a run that nobody follows."""
        place = self._run.with_name("unfollowed")
        publisher = self._publisher(str(count), str(every_s), before=STEP_BACK, run=place)
        async with publisher as process:
            await process.communicate()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[Callable[[], Awaitable[str]]]:
        """Publishes one version at each call, and gives its name; at the usual priority."""
        async with self._publisher(str(MOST), ASKED, before=()) as process:
            into, out = process.stdin, process.stdout
            assert into is not None and out is not None

            async def one() -> str:
                into.write(b"\n")
                await into.drain()
                return (await out.readline()).decode().strip()

            yield one
            into.close()

    @asynccontextmanager
    async def _publisher(
        self, count: str, every_s: str, *, before: Sequence[str], run: Path | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Leaving waits for its end. Raises RuntimeError."""
        arguments = (str(run or self._run), self._what, str(self._seed), count, every_s)
        process = await asyncio.create_subprocess_exec(
            *before,
            *python("-m", "bench.publisher", *arguments),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            yield process
            if await process.wait():
                raise RuntimeError(f"the publisher ended with status {process.returncode}")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def until_served(self, version: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            # Across processes there is no event to wait on.
            while not await asyncio.to_thread(self._all_serve, version):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)

    def _all_serve(self, version: str) -> bool:
        return {replica["version"] for replica in self.replicas()} == {version}


@contextmanager
def following(
    folder: Path, what: str, seed: int, *, replicas: int, **keys: float | str
) -> Iterator[Following]:
    """In `folder`, which is made; `keys` are the replicas'. One version is published first."""
    folder.mkdir()
    Publisher(folder / "run", kind_of(what, seed)).publish()
    text = what == TEXT
    told: dict[str, float | str] = {
        "model": folder.name,
        "kind": "llm" if text else "tensor",
        "run": str(folder / "run"),
        "channel": "stable",
        "device": "cpu",
        "threads": 1,
        "poll_s": 0.05,
        "probation_s": 0.2,
        **({"pages": 1024, "weights": "bf16"} if text else {"code": str(MODELS)}),
        **keys,
    }
    spawn = folder / "m.replica.toml"
    spawn.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items()))
    config = folder / "serve.toml"
    config.write_text(
        '[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
        f'[[models]]\nname = "{folder.name}"\nkind = "{told["kind"]}"\n'
        f'[[models.replicas]]\nname = "{folder.name}"\ncount = {replicas}\nspawn = "{spawn}"\n'
    )
    command = python("-m", "gateway", "serve", config)
    with Server("penstock", command, log=folder / "gateway.log") as server:
        yield Following(folder, what, seed, server)
