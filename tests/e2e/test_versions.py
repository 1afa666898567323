"""Versions across real processes: whatever breaks while one is rolled out, the right one serves in
the end, no request fails, and an event says what happened."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from backends.checkpoint import Probe, Run, is_quarantined, publish, read_channel
from gateway.control import call_replica
from tests.e2e.fleet import ROOT, GatewayProcess, get_json
from tests.e2e.models.stamp import SLOW
from tests.e2e.publishing import (
    careless,
    commit_stamp,
    publish_stamp,
    replica_file,
    slow_publisher,
)
from tests.e2e.test_loop import Stamped, check, until
from tests.e2e.traffic import ask, steady

# Long enough to be seen in each state from outside.
BALLAST, LOAD_RATE, VERIFY_MS = 2**19, 2**20, 700.0


class Versioned(Stamped):
    """As `Stamped`; publishes the next step and tells what became of it."""

    def __init__(self, folder: Path, **options: object) -> None:
        super().__init__(folder, **options)
        self.step = 1
        self.version = self.first

    def publish(self, **how: object) -> str:
        self.step += 1
        self.version = publish_stamp(self.root, self.step, **how)
        return self.version

    def events(self) -> list[str]:
        found = get_json(f"{self.gateway.admin}/events")["events"]
        return [f"{event['kind']} {event['name']}: {event['text']}" for event in found]

    def happened(self, *words: str) -> bool:
        return any(all(word in event for word in words) for event in self.events())

    def at(self, *states: str) -> dict | None:
        """A replica in one of these states of its reload."""
        return next((r for r in self.gateway.replicas() if r["reload"] in states), None)

    def all_at(self, state: str) -> bool:
        return {r["reload"] for r in self.gateway.replicas()} == {state}

    def stage(self, replica: str) -> tuple[str, str, str]:
        """What it serves, the state of its reload, and the version that this goes to."""
        found = next(r for r in self.gateway.replicas() if r["name"] == replica)
        return found["version"], found["reload"], found["reload_to"]

    def operate(self, verb: str, version: str = "") -> None:
        """`promote` or `rollback`, as an operator."""
        url = f"{self.gateway.admin}/models/stamp/{verb}"
        body = json.dumps({"version": version}).encode() if version else b""
        asked = urllib.request.Request(url, body, method="POST")
        urllib.request.urlopen(asked, timeout=10).close()

    def settled(self, version: str) -> bool:
        replicas = self.gateway.replicas()
        return {(r["version"], r["reload"], r["state"]) for r in replicas} == {
            (version, "idle", "ready")
        }


@pytest.fixture(scope="module")
def versioned(tmp_path_factory):
    served = Versioned(
        tmp_path_factory.mktemp("versions"),
        workers=2,
        load_bytes_per_second=LOAD_RATE,
        poll_s=0.05,
        probation_s=1.5,
        versions=2,
    )
    served.gateway.wait_ready()
    yield served
    assert served.gateway.stop() == 0, served.gateway.log


async def calm(versioned) -> str:
    """Every replica serves one version and is done with it; that version."""
    await until("calm", lambda: versioned.settled(versioned.gateway.replicas()[0]["version"]))
    return versioned.gateway.replicas()[0]["version"]


@pytest.mark.parametrize("state", ["load", "verify", "ready", "swap", "probation"])
async def test_a_replica_killed_in_any_state_of_its_reload_costs_nothing(versioned, state):
    before = await calm(versioned)
    config = {"load": {"ballast": BALLAST}, "verify": {"verify_ms": VERIFY_MS}}
    config["swap"] = config["verify"]
    async with steady(versioned.gateway.url, rate=80) as record, asyncio.TaskGroup() as group:
        version = await asyncio.to_thread(versioned.publish, **config.get(state, {}))
        if state == "swap":
            # A swap waits for the batch that runs.
            await until("a load", lambda: versioned.at("verify"))
            await ask_both_slowly(versioned, group)
        found: list[dict] = []

        def seen() -> bool:
            found[:] = [replica] if (replica := versioned.at(state)) else []
            return bool(found)

        await until(state, seen)
        os.kill(found[0]["pid"], signal.SIGKILL)
        await until("the new version everywhere", lambda: versioned.settled(version))
    check(record)
    assert set(record.versions()) == {before, version}
    assert versioned.happened(found[0]["name"], "SIGKILL")


async def test_a_replica_killed_before_it_has_a_lease_costs_nothing(versioned):
    before = await calm(versioned)
    versioned.step += 1
    version = await asyncio.to_thread(commit_stamp, versioned.root, versioned.step)
    async with steady(versioned.gateway.url, rate=80) as record:
        with slow_publisher(versioned.root, versioned.step):
            await until("admission", lambda: versioned.all_at("admit"))
            killed = versioned.gateway.replicas()[0]
            os.kill(killed["pid"], signal.SIGKILL)
            await until("the death", lambda: versioned.happened(killed["name"], "SIGKILL"))
        await until("the new version everywhere", lambda: versioned.settled(version))
    check(record)
    assert set(record.versions()) == {before, version}


async def test_a_replica_killed_as_it_commits_costs_nothing(versioned):
    before = await calm(versioned)
    async with steady(versioned.gateway.url, rate=80) as record, asyncio.TaskGroup() as group:
        version = await asyncio.to_thread(versioned.publish)
        await until("the first", lambda: versioned.at("probation"))
        killed = versioned.at("probation")
        # The end of a probation reaches the device after the batch that runs.
        await ask_both_slowly(versioned, group)
        await until("its end", lambda: versioned.stage(killed["name"]) == (version, "idle", ""))
        os.kill(killed["pid"], signal.SIGKILL)
        await until("the new version everywhere", lambda: versioned.settled(version))
    check(record)
    assert set(record.versions()) == {before, version}
    assert versioned.happened(killed["name"], f"{version} is proven here")
    assert versioned.happened(killed["name"], "SIGKILL")


async def test_a_replica_killed_as_it_goes_back_never_serves_that_version_again(versioned):
    before = await calm(versioned)
    async with steady(versioned.gateway.url, rate=80) as record, asyncio.TaskGroup() as group:
        bad = await asyncio.to_thread(versioned.publish)
        await until("the first", lambda: versioned.at("probation"))
        killed = versioned.at("probation")
        await ask_both_slowly(versioned, group)
        await call_replica(killed["address"], "rollback", version=bad)
        # It swaps back after the batch that runs.
        await until("it", lambda: versioned.stage(killed["name"]) == (bad, "swap", before))
        os.kill(killed["pid"], signal.SIGKILL)
        await until("its death", lambda: versioned.happened(killed["name"], "SIGKILL"))
        dead = len(record.answers)
        await until("the old version everywhere", lambda: versioned.settled(before))
    check(record)
    # The channel is still at it: what came up in the killed one's place was told.
    assert read_channel(Run(versioned.root), "stable").version == bad
    assert bad not in {answer.version for answer in record.answers[dead:]}
    assert versioned.happened(killed["name"], f"{bad} is refused everywhere", "operator")


async def ask_slow(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        await ask(session, url, SLOW + 3000)


async def ask_both_slowly(versioned: Versioned, group: asyncio.TaskGroup) -> None:
    """A long batch on either replica."""
    for _ in range(2):
        group.create_task(ask_slow(versioned.gateway.url))
        await asyncio.sleep(0.1)


async def test_replicas_take_a_version_one_after_another(versioned):
    await calm(versioned)
    async with steady(versioned.gateway.url, rate=80) as record:
        version = await asyncio.to_thread(versioned.publish)
        await until("the first", lambda: versioned.at("probation"))
        status = versioned.gateway.status()["models"][0]
        # The other one may still be loading it, but serves it only after this probation.
        assert [r["reload"] for r in status["replicas"]].count("probation") == 1
        assert sum(r["version"] == version for r in status["replicas"]) == 1
        assert len(status["rollout"]["versions"]) == 2
        await until("both", lambda: versioned.settled(version))
    check(record)
    assert versioned.happened("rollout", version, "is proven here")
    assert versioned.gateway.status()["models"][0]["rollout"]["skew_s"] == 0


async def test_an_operator_goes_back_by_one_version_at_every_replica(versioned):
    before = await calm(versioned)
    # Whoever goes back first has the gateway refuse the version to the other, which waits for it.
    for _ in range(5):
        async with steady(versioned.gateway.url, rate=80) as record:
            bad = await asyncio.to_thread(versioned.publish)
            await until("both", lambda: versioned.at("probation") and versioned.at("ready"))
            await asyncio.to_thread(versioned.operate, "rollback")
            await until("the version before", lambda: versioned.settled(before))
        check(record)
        assert set(record.versions()) <= {before, bad}
        assert versioned.happened(f"{bad} is refused everywhere", "operator")


@pytest.fixture
def uneven(tmp_path):
    served = Uneven(tmp_path)
    try:
        served.gateway.wait_ready()
        yield served
    finally:
        assert served.gateway.stop() == 0, served.gateway.log


async def test_all_go_back_to_one_version_whatever_each_has_seen(uneven):
    """One replica looks at the channel all the time, the other one only when it is told to."""
    served = uneven
    await until("both replicas", served.all_ready)
    good = await asyncio.to_thread(served.publish)
    await asyncio.to_thread(served.operate, "reload")
    await until("the good one", lambda: served.settled(good))
    async with steady(served.gateway.url, rate=80) as record:
        bad = await asyncio.to_thread(served.publish)
        await until("the quick one", lambda: served.stage("quick")[:2] == (bad, "idle"))
        assert served.stage("late") == (good, "idle", "")
        # From two shells, of which one may be later than all that the other does: it is one.
        twice = (asyncio.to_thread(served.operate, "rollback", bad) for _ in range(2))
        await asyncio.gather(*twice)
        await until("the version before", lambda: served.settled(good))
        # The late one sees the channel now, in a new process even; the bad one is never served.
        late = next(r for r in served.gateway.replicas() if r["name"] == "late")
        os.kill(late["pid"], signal.SIGKILL)
        await until("its death", lambda: served.happened("late", "SIGKILL"))
        await until("the version before, anew", lambda: served.settled(good))
        assert read_channel(Run(served.root), "stable").version == bad
        # Twice in a row goes one further.
        await asyncio.to_thread(served.operate, "rollback")
        await until("the first", lambda: served.settled(served.first))
    check(record)
    assert set(record.versions()) <= {served.first, good, bad}
    assert {a.version for a in record.answers if a.served_by == "late"} <= {served.first, good}


class Uneven(Versioned):
    def __init__(self, folder: Path) -> None:
        self.root, self.step = folder / "run", 1
        self.first = self.version = publish_stamp(self.root, 1)
        options = {"probation_s": 0.2}
        quick = replica_file(folder, self.root, poll_s=0.05, **options)
        late = replica_file(folder, self.root, file="late.toml", poll_s=60.0, **options)
        self.gateway = GatewayProcess(
            folder,
            '[[models]]\nname = "stamp"\n'
            f'[[models.replicas]]\nname = "quick"\nspawn = "{quick}"\n'
            f'[[models.replicas]]\nname = "late"\nspawn = "{late}"\n',
        )


async def test_a_version_that_fails_its_probe_is_served_by_nobody(versioned):
    before = await calm(versioned)
    wrong = Probe(inputs={"x": [[1.0]]}, outputs={"y": [[1.0, -1.0]]}, rtol=1e-3, atol=1e-3)
    async with steady(versioned.gateway.url, rate=80) as record:
        bad = await asyncio.to_thread(versioned.publish, probe=wrong)
        await until("the refusal", lambda: versioned.happened("rollout", "does not serve", bad))
        run = Run(versioned.root)
        hash = run.manifest(versioned.step).hash
        await until("the quarantine", lambda: is_quarantined(run, hash))
        await until("calm", lambda: versioned.settled(before))
    check(record)
    assert set(record.versions()) == {before}


@pytest.mark.parametrize("fault", [{"raises": True}, {"delay_ms": 60.0}])
async def test_a_version_that_does_worse_is_tried_by_one_replica_only(versioned, fault):
    before = await calm(versioned)
    async with steady(versioned.gateway.url) as record:
        bad = await asyncio.to_thread(versioned.publish, **fault)
        await until("the verdict", lambda: versioned.happened(bad, "is refused everywhere"))
        await until("the old version", lambda: versioned.settled(before))
    check(record)
    assert set(record.versions()) <= {before, bad}
    tried = {answer.served_by for answer in record.answers if answer.version == bad}
    swapped = {e.split()[1] for e in versioned.events() if f"swaps to {bad}" in e}
    assert len(swapped) == 1 and len(tried) <= 1
    assert bad in versioned.gateway.status()["models"][0]["rollout"]["refused"]


async def test_two_publishers_at_once_leave_one_version(versioned):
    await calm(versioned)
    steps = (versioned.step + 1, versioned.step + 2)
    versioned.step += 2
    async with steady(versioned.gateway.url, rate=80) as record:
        for step in steps:
            await asyncio.to_thread(commit_stamp, versioned.root, step)
        with ThreadPoolExecutor(2) as publishers:
            runs = [Run(versioned.root), Run(versioned.root)]
            list(publishers.map(lambda run, step: publish(run, "stable", step), runs, steps))
        record_now = read_channel(Run(versioned.root), "stable")
        await until("that version", lambda: versioned.settled(record_now.version))
    check(record)


async def test_a_worker_killed_during_a_rollout_stops_nothing(versioned):
    await calm(versioned)
    victim = versioned.gateway.status()["workers"][1]["pid"]
    async with steady(versioned.gateway.url, rate=80, reconnect=True) as record:
        version = await asyncio.to_thread(versioned.publish)
        await until("the first", lambda: versioned.at("probation"))
        os.kill(victim, signal.SIGKILL)
        await until("the new version everywhere", lambda: versioned.settled(version))
    check(record)
    assert versioned.happened("worker-1", "SIGKILL")


async def test_a_request_pins_a_kept_version_by_path_or_header(versioned):
    # What was kept by all replicas is the version before, once they have followed for two.
    old = await calm(versioned)
    new = await asyncio.to_thread(versioned.publish)
    await until("the new version", lambda: versioned.settled(new))
    async with aiohttp.ClientSession() as session:
        for version in (old, new):
            header = {"x-model-version": version}
            for _ in range(6):
                answer = await ask(session, versioned.gateway.url, 1.0, **header)
                assert (answer.version, answer.stamp) == (version, float(version.split("-")[0]))
        with pytest.raises(RuntimeError, match="404"):
            await ask(session, versioned.gateway.url, 1.0, **{"x-model-version": "999"})


async def test_published_again_and_again_every_request_is_accounted_for(tmp_path):
    """A story of some seconds: a trainer that publishes all the time, one checkpoint corrupt."""
    served = Versioned(tmp_path, poll_s=0.05, probation_s=0.3)
    served.gateway.wait_ready()
    await until("both replicas", served.all_ready)
    async with steady(served.gateway.url, rate=100) as record:
        for number in range(16):
            with careless() if number == 7 else contextlib.nullcontext():
                await asyncio.to_thread(served.publish, damage=number == 7)
            if number == 7:
                bad = served.version
            await asyncio.sleep(0.4)
        await until("the last version", lambda: served.settled(served.version))
    check(record)
    assert bad not in record.versions() and len(record.versions()) >= 4
    counters = served.counters()
    assert counters["done"] == counters["accepted"] == record.sent
    assert served.gateway.stop() == 0, served.gateway.log


# ------------------------------------------------------------------------------------- canaries


class Canaried(Versioned):
    """One replica that follows `stable`, one that follows `canary`."""

    def __init__(self, folder: Path, **keys: object) -> None:
        self.root, self.step = folder / "run", 1
        self.first = self.version = publish_stamp(self.root, 1)
        publish(Run(self.root), "canary", 1)
        # The replica's own check is made blind: the gateway's is to be seen.
        options = {"poll_s": 0.05, "probation_s": 0.2, "slowdown": 1000.0}
        stable = replica_file(folder, self.root, **options)
        canary = replica_file(folder, self.root, file="c.toml", channel="canary", **options)
        text = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in keys.items())
        self.gateway = GatewayProcess(
            folder,
            '[[models]]\nname = "stamp"\n'
            f'[[models.replicas]]\nname = "stable"\nspawn = "{stable}"\n'
            f'[[models.replicas]]\nname = "canary"\nspawn = "{canary}"\n'
            f'[models.canary]\nchannel = "canary"\n{text}',
        )

    def tries(self, version: str) -> bool:
        """The canary's replica serves it, settled, and the other one what came first."""
        model = self.gateway.status()["models"][0]
        found = {r["name"]: (r["version"], r["reload"], r["state"]) for r in model["replicas"]}
        return model["rollout"]["canary"]["trying"] == version and found == {
            "stable": (self.first, "idle", "ready"),
            "canary": (version, "idle", "ready"),
        }

    def worker_ready(self) -> bool:
        return all(worker["state"] == "ready" for worker in self.gateway.status()["workers"])


@pytest.fixture(scope="module")
def canaried(tmp_path_factory):
    served = Canaried(
        tmp_path_factory.mktemp("canary"), share=0.3, by="request", after_s=1.5, requests=40
    )
    served.gateway.wait_ready()
    yield served
    assert served.gateway.stop() == 0, served.gateway.log


async def test_a_canary_that_does_well_is_promoted(canaried):
    await until("both replicas", canaried.all_ready)
    async with steady(canaried.gateway.url, rate=100) as record:
        version = await asyncio.to_thread(canaried.publish, to="canary")
        await until("the promotion", lambda: canaried.settled(version))
    check(record)
    assert canaried.happened("canary stamp:", version, "is promoted", "0 failed")
    assert read_channel(Run(canaried.root), "stable").version == version


async def test_a_canary_that_is_slower_is_rolled_back(canaried):
    before = await calm(canaried)
    async with steady(canaried.gateway.url, rate=60) as record:
        bad = await asyncio.to_thread(canaried.publish, to="canary", delay_ms=30.0)
        await until("the rollback", lambda: canaried.happened(bad, "is rolled back"))
        await until("the old version", lambda: canaried.settled(before))
    check(record)
    share = record.versions()[bad] / len(record.answers)
    assert 0.02 < share < 0.6
    assert read_channel(Run(canaried.root), "stable").version == before
    told = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "gateway", "promote", "stamp"],
        env={**os.environ, "PENSTOCK_SERVER__ADMIN": f"127.0.0.1:{canaried.gateway.admin_port}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 1 and "tries nothing" in told.stderr


async def test_a_session_keeps_its_version_while_a_canary_is_tried(tmp_path):
    served = Canaried(tmp_path, share=0.4, by="session", decide="manual")
    served.gateway.wait_ready()
    await until("both replicas", served.all_ready)
    new = await asyncio.to_thread(served.publish, to="canary")
    await until("the trial", lambda: served.tries(new))
    first = await by_session(served)
    assert set(first.values()) == {served.first, new}
    assert 0.15 < list(first.values()).count(new) / len(first) < 0.65
    for _ in range(5):
        assert await by_session(served) == first
    # A worker that comes in its place knows nothing, and yet sends them the same way.
    (victim,) = served.gateway.status()["workers"]
    os.kill(victim["pid"], signal.SIGKILL)
    await until("its death", lambda: served.happened("worker-0", "SIGKILL"))
    await until("another", lambda: served.worker_ready() and served.tries(new))
    assert await by_session(served) == first
    await asyncio.to_thread(served.operate, "promote")
    await until("the promotion", lambda: served.settled(new))
    assert set((await by_session(served)).values()) == {new}
    assert served.gateway.stop() == 0, served.gateway.log


async def by_session(served: Canaried) -> dict[str, str]:
    """The version that each of some sessions is answered by."""
    names = [f"session-{number}" for number in range(40)]
    async with aiohttp.ClientSession() as client:
        answers = await asyncio.gather(
            *(ask(client, served.gateway.url, 1.0, **{"x-session-id": name}) for name in names)
        )
    assert all(int(answer.version.split("-")[0]) == answer.stamp for answer in answers)
    return dict(zip(names, (answer.version for answer in answers), strict=True))
