"""Real processes: publish, serve, reload under load, kill under load; nothing is lost or mixed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import tritonclient.http as triton

from backends.checkpoint import Run, rollback
from tests.e2e.fleet import GatewayProcess, get_json
from tests.e2e.models.stamp import UNLUCKY
from tests.e2e.publishing import publish_stamp, replica_file
from tests.e2e.traffic import Record, ask, steady


async def until(what: str, condition, seconds: float = 60.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            # Across processes there is no event to wait on.
            while not await asyncio.to_thread(condition):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {seconds} s for {what}") from None


class Stamped:
    """A gateway over two spawned replicas of the stamp model."""

    def __init__(self, folder: Path, *, workers: int = 1, **replica: object) -> None:
        self.root = folder / "run"
        self.first = publish_stamp(self.root, 1)
        file = replica_file(folder, self.root, **replica)
        config = f"workers = {workers}\n" if workers > 1 else ""
        self.gateway = GatewayProcess(
            folder,
            config + '[[models]]\nname = "stamp"\n[[models.replicas]]\n'
            f'name = "stamp"\ncount = 2\nspawn = "{file}"\n',
        )

    def all_ready(self) -> bool:
        return all(replica["state"] == "ready" for replica in self.gateway.replicas())

    def all_serve(self, version: str) -> bool:
        return {replica["version"] for replica in self.gateway.replicas()} == {version}

    def counters(self) -> dict[str, int]:
        return self.gateway.status()["models"][0]["counters"]


@pytest.fixture(scope="module")
def stamped(tmp_path_factory):
    served = Stamped(tmp_path_factory.mktemp("stamped"))
    served.gateway.wait_ready()
    yield served
    assert served.gateway.stop() == 0, served.gateway.log


def check(record: Record) -> None:
    """Nothing failed, nothing was lost, and no answer mixes two versions."""
    assert not record.failures, record.failures[:5]
    assert record.sent == len(record.answers) > 0
    for answer in record.answers:
        assert int(answer.version.split("-")[0]) == answer.stamp, answer


async def test_a_public_client_is_answered(stamped):
    with triton.InferenceServerClient(stamped.gateway.url.removeprefix("http://")) as client:
        assert client.is_server_live() and client.is_model_ready("stamp")
        tensor = triton.InferInput("x", [3, 1], "FP32")
        tensor.set_data_from_numpy(np.array([[1], [2], [3]], np.float32))
        reply = client.infer("stamp", [tensor])
        assert reply.as_numpy("y").tolist() == [[1, 1], [2, 1], [3, 1]]


async def test_a_bad_item_fails_alone(stamped):
    await until("both replicas", stamped.all_ready)
    async with aiohttp.ClientSession() as session:

        async def one(value: float):
            try:
                return await ask(session, stamped.gateway.url, value)
            except RuntimeError as error:
                return str(error)

        outcomes = await asyncio.gather(*[one(float(value)) for value in range(40)])
    unlucky = outcomes.pop(int(UNLUCKY))
    assert isinstance(unlucky, str) and unlucky.startswith("500") and "unlucky" in unlucky
    assert all(not isinstance(outcome, str) for outcome in outcomes)
    assert stamped.all_ready()


async def test_a_new_version_replaces_the_old_one_under_load(stamped):
    await until("both replicas", stamped.all_ready)
    async with steady(stamped.gateway.url) as record:
        for step in (2, 3):
            version = await asyncio.to_thread(publish_stamp, stamped.root, step)
            await until("the reload", lambda version=version: stamped.all_serve(version))
    check(record)
    assert len(record.versions()) == 3


async def test_a_killed_replica_costs_no_request_and_comes_back(stamped):
    await until("both replicas", stamped.all_ready)
    async with steady(stamped.gateway.url) as record:
        for index in (0, 1):
            victim = stamped.gateway.replicas()[index]
            os.kill(victim["pid"], signal.SIGKILL)

            def replaced(index=index, victim=victim) -> bool:
                replica = stamped.gateway.replicas()[index]
                return replica["state"] == "ready" and replica["pid"] != victim["pid"]

            await until("the replica to come back", replaced)
    check(record)
    assert {answer.served_by for answer in record.answers} == {"stamp-0", "stamp-1"}


async def test_both_replicas_killed_at_once_cost_no_request(stamped):
    await until("both replicas", stamped.all_ready)
    async with steady(stamped.gateway.url, rate=50) as record:
        before = {replica["pid"] for replica in stamped.gateway.replicas()}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(
            "both to come back",
            lambda: (
                stamped.all_ready()
                and not before & {replica["pid"] for replica in stamped.gateway.replicas()}
            ),
        )
    check(record)


async def test_a_corrupt_version_is_never_served(stamped, monkeypatch):
    await until("both replicas", stamped.all_ready)
    before = stamped.gateway.replicas()[0]["version"]
    async with steady(stamped.gateway.url) as record:
        with monkeypatch.context() as careless:
            # A publisher that does not look at what it publishes.
            careless.setattr(
                "backends.checkpoint.channel.verify", lambda run, step: run.manifest(step)
            )
            publish_stamp(stamped.root, 50, damage=True)
        await until("the quarantine", lambda: any((stamped.root / "quarantine").glob("*.json")))
        rollback(Run(stamped.root), "stable")
        # The replicas still follow the channel after the bad one.
        after = publish_stamp(stamped.root, 51)
        await until("the next version", lambda: stamped.all_serve(after))
    check(record)
    assert set(record.versions()) == {before, after}


async def test_counters_balance(stamped):
    await until("the last answers", lambda: stamped.counters()["live"] == 0)
    counters = stamped.counters()
    assert counters["accepted"] == counters["done"] + counters["failed"] + counters["cancelled"]
    assert counters["done"] > 0 and counters["failed"] == 1


async def test_the_contract_of_errors(stamped):
    url = stamped.gateway.url
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}

    def body(**changes: object) -> bytes:
        return json.dumps({"inputs": [{**tensor, **changes}]}).encode()

    cases = [
        ("stamp", b"{", 400, ""),
        ("stamp", b'{"inputs":[]}', 400, "x"),
        ("stamp", body(name="z"), 400, "z"),
        ("stamp", body(shape=[1, 3]), 400, "x"),
        ("stamp", body(data=["a"]), 400, "x"),
        ("stamp", body(datatype="INT8"), 400, "x"),
        ("nothing", b"{}", 404, "nothing"),
    ]
    async with aiohttp.ClientSession() as session:
        for model, sent, status, named in cases:
            async with session.post(f"{url}/v2/models/{model}/infer", data=sent) as reply:
                text = await reply.text()
                assert reply.status == status, (sent, text)
                assert named in (await reply.json(content_type=None))["error"]
        async with session.get(f"{url}/no/such/page") as reply:
            assert reply.status == 404
        async with session.get(f"{url}/healthz") as reply:
            assert reply.status == 200


async def test_operators_see_the_gateway(stamped):
    admin = stamped.gateway.admin
    status = get_json(f"{admin}/status")
    assert status["workers"][0]["pid"] != stamped.gateway.process.pid
    async with aiohttp.ClientSession() as session:
        for url in (admin, stamped.gateway.url):
            async with session.get(f"{url}/metrics") as reply:
                text = await reply.text()
                assert 'penstock_requests_total{end="done",model="stamp"}' in text
        async with session.get(f"{stamped.gateway.url}/") as reply:
            assert reply.status == 200 and "html" in reply.headers["content-type"]
