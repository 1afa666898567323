"""Inputs of variable length through the whole gateway: right sums, bounded padding, a budget."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from tests.e2e.fleet import GatewayProcess
from tests.e2e.publishing import MODELS

BUDGET = 512


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    config = ""
    for name, model in (("padded", "PaddedSums"), ("joined", "JoinedSums")):
        (folder / f"{name}.toml").write_text(
            f'model = "{name}"\nclass = "ragged:{model}"\nthreads = 1\n'
        )
        config += (
            f'[[models]]\nname = "{name}"\nmax_batch_elements = {BUDGET}\n'
            f'[[models.replicas]]\nname = "{name}"\nspawn = "{name}.toml"\n'
        )
    (folder / "ragged.py").write_text((MODELS / "ragged.py").read_text())
    running = GatewayProcess(folder, config)
    running.wait_ready()
    yield running
    assert running.stop() == 0, running.log


@pytest.mark.parametrize("model", ["padded", "joined"])
async def test_every_length_is_answered_within_the_budget(gateway, model):
    rng = random.Random(0)
    rows = [[rng.randint(0, 9) for _ in range(rng.randint(1, 200))] for _ in range(150)]

    async def ask(session: aiohttp.ClientSession, row: list[int]) -> tuple[float, int]:
        tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}
        url = f"{gateway.url}/v2/models/{model}/infer"
        async with session.post(url, json={"inputs": [tensor]}) as reply:
            body = await reply.json()
            assert reply.status == 200, body
            total, width = (output["data"][0] for output in body["outputs"])
            return total, width

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        answers = await asyncio.gather(*(ask(session, row) for row in rows))
    for row, (total, width) in zip(rows, answers, strict=True):
        assert total == sum(row)
        assert len(row) <= width < 2 * len(row) + (len(row) == 1)


async def test_what_is_over_the_budget_by_itself_is_refused(gateway):
    row = [1.0] * (BUDGET + 1)
    tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    async with aiohttp.ClientSession() as session:
        url = f"{gateway.url}/v2/models/joined/infer"
        async with session.post(url, json={"inputs": [tensor]}) as reply:
            body = await reply.json()
    assert reply.status == 400, body
    assert "max_batch_elements" in body["error"]


async def test_a_model_without_a_channel_can_be_unloaded_and_loaded(gateway):
    async with aiohttp.ClientSession() as session:
        for verb, ready in (("unload", 503), ("load", 200)):
            url = f"{gateway.url}/v2/repository/models/joined/{verb}"
            async with session.post(url) as reply:
                assert reply.status == 200, await reply.text()
            async with session.get(f"{gateway.url}/v2/models/joined/ready") as reply:
                assert reply.status == ready, await reply.text()
                if verb == "unload":
                    assert "unloaded" in (await reply.json())["error"]
