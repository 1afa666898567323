"""Processes of replicas: who hears that one is another one now."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest

from gateway.config import parse
from gateway.process import Backoff
from gateway.replica_process import ReplicaProcess
from tests.gateway.supervised import until

PROCESS = (sys.executable, "-c", "pass")


@pytest.mark.parametrize("kind", ["http", "native"])
async def test_workers_are_told_of_each_process_of_an_http_replica(tmp_path, kind):
    """Native ones say themselves which process they are."""
    (tmp_path / "r.toml").write_text("x")
    made = (
        'command = ["{python}", "-c", "pass", "{port}"]' if kind == "http" else 'spawn = "r.toml"'
    )
    text = f'[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\nkind = "{kind}"\n{made}\n'
    config = parse(text, tmp_path / "serve.toml", {})
    told, died = [], []
    process = ReplicaProcess(
        next(replica for _, replica in config.replicas()),
        tmp_path,
        PROCESS,
        Backoff(random.Random(1), base=0.001),
        folder=tmp_path,
        died=lambda replica, how, wait_s: died.append(how),
        renewed=lambda replica: told.append(replica.name),
    )
    running = asyncio.create_task(process.child.run())
    await until(lambda: len(died) >= 2)
    await process.child.stop(5.0)
    await running
    assert died[0] == "exited with status 0"
    # At its start, unless it was over before anybody looked, and at its end.
    assert len(told) >= len(died) if kind == "http" else not told
