"""A model against replicas that answer, die, hang and lie: every request ends exactly once."""

from __future__ import annotations

import asyncio
import gc
import random
import struct
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backends import wire
from backends.wire import Kind
from gateway.config import CanaryConfig, GatewayConfig, ModelConfig, ReplicaConfig, ServerConfig
from gateway.errors import GatewayError
from gateway.fleet import Fleet
from gateway.request import Answer, Tensor, TensorRequest
from tests.gateway.fakes import FakeReplica, until


class Client:
    """Submits requests and keeps each outcome; a second one for the same request is an error."""

    def __init__(self, model) -> None:
        self.model = model
        self.outcomes: dict[int, Answer | GatewayError] = {}
        self._changed = asyncio.Event()

    def ask(self, number: int, **more) -> TensorRequest:
        def done(outcome: Answer | GatewayError) -> None:
            assert number not in self.outcomes
            self.outcomes[number] = outcome
            self._changed.set()

        tensor = Tensor("x", "FP32", (1, 2), struct.pack("<2f", number, 0.5))
        arrived = asyncio.get_running_loop().time()
        request = TensorRequest((tensor,), 1, (), done, arrived=arrived, **more)
        self.model.submit(request)
        return request

    async def all(self, count: int) -> dict[int, Answer | GatewayError]:
        async with asyncio.timeout(20):
            while len(self.outcomes) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.outcomes

    def balance(self) -> None:
        m = self.model.measures
        assert m.accepted == m.done + m.failed + m.cancelled + len(self.model._live)


def doubled(outcome: Answer) -> tuple[float, float]:
    assert isinstance(outcome, Answer), outcome
    return struct.unpack("<2f", outcome.outputs[0].data)


@asynccontextmanager
async def serving(tmp_path: Path, count: int = 1, **config):
    """(client, fakes, fleet): a fleet of one model whose replicas are ready."""
    fakes = [FakeReplica(tmp_path / f"r{n}.sock") for n in range(count)]
    for fake in fakes:
        await fake.start()
    replicas = tuple(ReplicaConfig(name=f"r-{n}", address=f.address) for n, f in enumerate(fakes))
    model = ModelConfig(name="double", replicas=replicas, **config)
    whole = GatewayConfig(server=ServerConfig(), models=(model,), path=tmp_path / "serve.toml")
    fleet = Fleet(
        whole,
        tmp_path,
        gateway="test",
        switch=lambda op, model, done: done(None),
        loop=asyncio.get_running_loop(),
        rng=random.Random(0),
    )
    try:
        await until(lambda: all(r.ready for r in fleet.model("double").replicas))
        yield Client(fleet.model("double")), fakes, fleet
    finally:
        await fleet.close()
        for fake in fakes:
            await fake.stop()


async def test_requests_of_one_turn_share_batches_and_get_their_own_rows(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        for number in range(20):
            client.ask(number)
        outcomes = await client.all(20)
        assert [doubled(outcomes[n]) for n in range(20)] == [(2.0 * n, 1.0) for n in range(20)]
        # Two slots of eight rows are filled at once, the rest when a slot is free again.
        assert [len(meta["rows"]) for meta in fake.executed] == [8, 8, 4]
        client.balance()
        load = client.model.replicas[0].load
        assert (load.in_flight, load.work) == (0, 0.0)


async def test_a_batch_whose_replica_dies_is_answered_by_another(tmp_path):
    async with serving(tmp_path, 2) as (client, fakes, _):
        for fake in fakes:
            fake.held = []
        for number in range(10):
            client.ask(number)
        await until(lambda: sum(len(fake.executed) for fake in fakes) >= 2)
        dead, alive = sorted(fakes, key=lambda fake: -len(fake.executed))
        await dead.stop()
        alive.release()
        outcomes = await client.all(10)
        assert [doubled(outcomes[n])[0] for n in range(10)] == [2.0 * n for n in range(10)]
        assert client.model.measures.retried > 0
        client.balance()


async def test_requests_wait_for_the_only_replica_to_come_back(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        fake.held = []
        client.ask(1)
        await until(lambda: fake.executed)
        await fake.stop()
        await until(lambda: not client.model.ready)
        client.ask(2)
        fake.held = None
        await fake.start()
        outcomes = await client.all(2)
        assert {doubled(outcome)[0] for outcome in outcomes.values()} == {2.0, 4.0}


async def test_a_request_is_sent_at_most_once_more_than_its_retries(tmp_path):
    async with serving(tmp_path, retries=0) as (client, (fake,), _):
        fake.held = []
        client.ask(1)
        await until(lambda: fake.executed)
        await fake.stop()
        await fake.start()
        outcome = (await client.all(1))[1]
        assert isinstance(outcome, GatewayError)
        assert (outcome.status, outcome.code) == (502, "bad_replica")
        assert "died" in outcome.message
        assert len(fake.executed) == 1
        client.balance()


async def test_what_waits_is_cancelled_without_being_sent(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        fake.held = []
        requests = [client.ask(number) for number in range(20)]
        await until(lambda: len(fake.executed) == 2)
        requests[19].gone()
        requests[0].gone()
        assert fake.cancelled == []  # others of its flight are still wanted
        for request in requests[1:8]:
            request.gone()
        await until(lambda: len(fake.cancelled) == 1)
        fake.release()
        await client.all(20)
        assert sum(len(meta["rows"]) for meta in fake.executed) == 19
        assert client.model.measures.cancelled == 9
        client.balance()


async def test_a_deadline_ends_a_request_that_hangs_at_the_replica(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        fake.held = []
        now = asyncio.get_running_loop().time()
        client.ask(1, deadline=now + 0.05)
        outcome = (await client.all(1))[1]
        assert (outcome.status, outcome.code) == (504, "deadline_exceeded")
        await until(lambda: len(fake.cancelled) == 1)
        assert fake.executed[0]["deadlines_ms"][0] <= 50
        client.balance()


async def test_a_deadline_that_has_passed_is_never_sent(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        client.ask(1, deadline=asyncio.get_running_loop().time() - 1)
        assert (await client.all(1))[1].status == 504
        assert not fake.executed


async def test_a_full_queue_refuses_and_says_so(tmp_path):
    async with serving(tmp_path, max_queue=8) as (client, (fake,), _):
        fake.held = []
        for number in range(16):  # two flights
            client.ask(number)
            if number == 7:
                await until(lambda: len(fake.executed) == 1)
        await until(lambda: len(fake.executed) == 2)
        for number in range(16, 26):
            client.ask(number)
        refused = [o for o in client.outcomes.values() if isinstance(o, GatewayError)]
        assert [(o.status, o.code) for o in refused] == [(429, "overloaded")] * 2
        assert "queue is full" in refused[0].message
        fake.release()
        await client.all(26)
        client.balance()


async def test_without_a_replica_the_answer_says_what_each_is_doing(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        client.model._unserved_since = float("-inf")
        fake.say(state="loading")
        await until(lambda: not client.model.ready)
        client.model._unserved_since = float("-inf")
        client.ask(1)
        outcome = client.outcomes[1]
        assert (outcome.status, outcome.code) == (503, "no_healthy_replica")
        assert "r-0 is loading" in outcome.message


async def test_a_pinned_version_goes_where_it_is_held(tmp_path):
    async with serving(tmp_path, 2) as (client, (old, new), _):
        new.say(version="2-b", versions=("2-b", "1-a"))
        old.say(versions=("1-a",))
        await until(lambda: "2-b" in client.model.versions)
        for number in range(12):
            client.ask(number, version="2-b" if number % 2 else "1-a")
        outcomes = await client.all(12)
        assert {outcomes[n].version for n in range(1, 12, 2)} == {"2-b"}
        assert {outcomes[n].version for n in range(0, 12, 2)} == {"1-a"}
        assert all(meta["version"] != "2-b" for meta in old.executed)
        client.ask(12, version="9-z")
        assert client.outcomes[12].status == 404
        assert "9-z" in client.outcomes[12].message


@pytest.mark.parametrize("data", [b"{}", b'{"rows":[1]}', b"not json", b'{"rows":"x"}'])
async def test_an_answer_that_is_none_is_asked_elsewhere(tmp_path, data):
    async with serving(tmp_path, 2) as (client, fakes, _):

        def nonsense(frame):
            for fake in fakes:
                fake.answer = fake.double
            head = wire.HEADER.pack(wire.MAGIC, wire.VERSION, Kind.RESULT, len(data), 0, frame.id)
            return [head + data]

        for fake in fakes:
            fake.answer = nonsense
        client.ask(3)
        assert doubled((await client.all(1))[3])[0] == 6.0
        client.balance()


async def test_a_fault_of_the_replica_reaches_the_client_as_it_is(tmp_path):
    async with serving(tmp_path) as (client, (fake,), _):
        fake.answer = fake.fault(status=500, code="model_error", message="no such digit")
        client.ask(1)
        outcome = (await client.all(1))[1]
        assert (outcome.status, outcome.code) == (500, "model_error")
        assert outcome.message == "no such digit"


async def test_a_drained_replica_gets_nothing_new_and_comes_back(tmp_path):
    async with serving(tmp_path, 2) as (client, (first, second), fleet):
        fleet.replica("r-0").drain(0.0)
        for number in range(30):
            client.ask(number)
        await client.all(30)
        assert not first.executed and second.executed
        fleet.replica("r-0").undrain(0.0)
        fleet.replica("r-1").drain(0.0)
        client.ask(30)
        await client.all(31)
        assert first.executed


async def test_a_new_configuration_keeps_what_waits(tmp_path):
    async with serving(tmp_path, 2) as (client, (first, second), fleet):
        first.held, second.held = [], []
        for number in range(40):
            client.ask(number)
        await until(lambda: len(first.executed) + len(second.executed) == 4)
        config = client.model.config
        kept = (ReplicaConfig(name="r-1", address=second.address),)
        model = ModelConfig(name="double", replicas=kept, max_batch_size=2)
        fleet.apply(
            GatewayConfig(server=ServerConfig(), models=(model,), path=tmp_path / "serve.toml")
        )
        assert config is not client.model.config
        first.release()
        second.release()
        outcomes = await client.all(40)
        assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
        assert max(len(meta["rows"]) for meta in second.executed[2:]) == 2
        await until(lambda: not first.connections)
        client.balance()


async def test_random_deaths_lose_nothing(tmp_path):
    rng = random.Random(1)
    async with serving(tmp_path, 3, retries=8) as (client, fakes, _):
        for number in range(300):
            client.ask(number)
            if number % 25 == 24:
                victim = rng.choice(fakes)
                await victim.stop()
                await victim.start()
        outcomes = await client.all(300)
        # One that was alone with a replica when that was killed, and again, is taken to have done
        # it: no more than one for each kill but the first two.
        accused = [n for n, o in outcomes.items() if getattr(o, "code", "") == "poisonous_request"]
        assert len(accused) <= 10
        assert all(doubled(outcomes[n])[0] == 2.0 * n for n in range(300) if n not in accused)
        client.balance()
        assert all(r.load.in_flight == 0 for r in client.model.replicas)


async def test_sessions_stay_with_their_replica_and_leave_it_when_it_is_gone(tmp_path):
    async with serving(tmp_path, 3, routing="session") as (client, fakes, fleet):
        homes: dict[int, str] = {}
        for turn in range(4):
            for number in range(12):
                client.ask(turn * 12 + number, session=f"s{number}")
            outcomes = await client.all((turn + 1) * 12)
            for number in range(12):
                outcome = outcomes[turn * 12 + number]
                assert isinstance(outcome, Answer)
                assert homes.setdefault(number, outcome.replica) == outcome.replica
        assert len(set(homes.values())) == 3
        await fakes[0].stop()
        await until(lambda: not fleet.replica("r-0").ready)
        for number in range(12):
            client.ask(100 + number, session=f"s{number}")
        outcomes = await client.all(60)
        for number in range(12):
            now = outcomes[100 + number].replica
            assert now == homes[number] or homes[number] == "r-0"


async def test_a_session_that_waits_for_a_dying_replica_is_bound_to_another(tmp_path):
    async with serving(tmp_path, 2, routing="session") as (client, fakes, _):
        for fake in fakes:
            fake.held = []
        for number in range(60):  # more than both replicas' slots take at once
            client.ask(number, session=f"s{number % 6}")
        await until(lambda: all(len(fake.executed) == 2 for fake in fakes))
        await fakes[0].stop()
        fakes[1].release()
        outcomes = await client.all(60)
        assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
        client.balance()


async def test_a_saturated_replica_is_left_by_its_sessions(tmp_path):
    async with serving(tmp_path, 2, routing="session") as (client, fakes, _):
        for fake in fakes:
            fake.held = []
        for number in range(64):
            client.ask(number, session="the only one")
        await until(lambda: all(fake.executed for fake in fakes))
        for fake in fakes:
            fake.release()
        await client.all(64)
        client.balance()


def canary(fake, version="2-b"):
    fake.say(channel="canary", version=version, versions=(version,))


async def test_a_canary_gets_its_share_and_everything_else_goes_to_the_others(tmp_path):
    split = CanaryConfig(channel="canary", share=0.25, by="request")
    async with serving(tmp_path, 2, canary=split) as (client, fakes, fleet):
        model = fleet.model("double")
        canary(fakes[1])
        await until(lambda: set(model.versions) == {"1-a", "2-b"})
        assert model.versions[0] == "1-a"
        for number in range(40):
            client.ask(number)
        outcomes = await client.all(40)
        served = [outcome.version for outcome in outcomes.values()]
        assert served.count("2-b") == 10
        families = {family[0]: family[4:] for family in model.families()}
        counts = {labels[1]: v["count"] for labels, v in families["penstock_version_seconds"]}
        assert counts == {"1-a": 30, "2-b": 10}


async def test_a_session_keeps_to_its_version_and_a_pin_overrides(tmp_path):
    split = CanaryConfig(channel="canary", share=0.5)
    async with serving(tmp_path, 2, canary=split, routing="session") as (client, fakes, fleet):
        canary(fakes[1])
        await until(lambda: len(fleet.model("double").versions) == 2)
        for number in range(60):
            client.ask(number, session=f"s{number % 20}")
        outcomes = await client.all(60)
        by_session = {n % 20: set() for n in range(60)}
        for number, outcome in outcomes.items():
            by_session[number % 20].add(outcome.version)
        assert all(len(versions) == 1 for versions in by_session.values())
        assert len({version for (version,) in by_session.values()}) == 2
        for number, version in ((60, "1-a"), (61, "2-b")):
            client.ask(number, session="s0", version=version)
        outcomes = await client.all(62)
        assert (outcomes[60].version, outcomes[61].version) == ("1-a", "2-b")


async def test_what_waits_for_a_canary_that_goes_away_is_answered_by_the_others(tmp_path):
    split = CanaryConfig(channel="canary", share=1.0)
    async with serving(tmp_path, 2, canary=split) as (client, fakes, fleet):
        model = fleet.model("double")
        canary(fakes[1])
        await until(lambda: len(model.versions) == 2)
        fakes[1].held = []
        for number in range(40):
            client.ask(number)
        await until(lambda: fakes[1].held)
        await fakes[1].stop()
        outcomes = await client.all(40)
        assert {outcome.version for outcome in outcomes.values()} == {"1-a"}
        assert model.measures.by_version["2-b"].failed > 0
        client.balance()


async def test_a_canary_may_be_changed_while_requests_wait(tmp_path):
    split = CanaryConfig(channel="canary", share=1.0)
    async with serving(tmp_path, 2, canary=split) as (client, fakes, fleet):
        model = fleet.model("double")
        canary(fakes[1])
        await until(lambda: len(model.versions) == 2)
        fakes[0].held = []
        fakes[1].held = []
        for number in range(300):
            client.ask(number)
        await until(lambda: fakes[1].held)
        model.reconfigure(replace(model.config, canary=CanaryConfig()))
        await until(lambda: fakes[0].held)
        fakes[0].release()
        fakes[1].release()
        await client.all(300)
        client.balance()


async def test_a_request_that_has_ended_leaves_nothing_for_the_collector(tmp_path):
    async with serving(tmp_path) as (client, _, _):
        gc.collect()
        others = {id(one) for one in gc.get_objects() if type(one) is TensorRequest}
        gc.disable()
        try:
            for number in range(40):
                client.ask(number)
            await client.all(40)
            there = [one for one in gc.get_objects() if type(one) is TensorRequest]
        finally:
            gc.enable()
        assert not [one for one in there if id(one) not in others]


async def test_a_slow_model_gets_whole_batches_although_every_request_is_in_a_hurry(tmp_path):
    """Bound early, its second slot would hold a single request for the whole of the next batch."""
    async with serving(tmp_path) as (client, (fake,), _):
        curve = client.model.replicas[0].curve(None)
        for rows in (1, 8):
            for _ in range(20):
                curve.observe(rows, 0.2)
        fake.held = []
        loop = asyncio.get_running_loop()
        client.ask(0, deadline=loop.time() + 0.9)
        await until(lambda: len(fake.executed) == 1)
        for number in range(1, 7):
            client.ask(number, deadline=loop.time() + 0.9)
            await asyncio.sleep(0)
        assert len(fake.executed) == 1  # they gather while the first one runs
        fake.release()
        outcomes = await client.all(7)
        assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
        assert [len(meta["rows"]) for meta in fake.executed] == [1, 6]


async def test_a_model_that_is_drained_as_a_whole_refuses_at_once(tmp_path):
    async with serving(tmp_path, 2) as (client, _, fleet):
        for name in ("r-0", "r-1"):
            fleet.replica(name).drain(0.0)
        client.ask(1)
        outcome = client.outcomes[1]
        assert (outcome.status, outcome.code) == (503, "no_healthy_replica")
        assert "r-0 is draining" in outcome.message
        fleet.replica("r-0").undrain(0.0)
        client.ask(2)
        await client.all(2)
        assert isinstance(client.outcomes[2], Answer)


async def test_an_unloaded_model_says_so(tmp_path):
    async with serving(tmp_path) as (client, _, _):
        client.model.serve(False)
        client.ask(1)
        assert client.outcomes[1].status == 503
        assert "unloaded" in client.outcomes[1].message
        assert "unloaded" in client.model.reason() and client.model.status()["unloaded"]
