"""A replica over its socket: truthful from the first moment, one answer for each frame."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from backends.wire import Kind, Signature, Status
from tests.backends.fakes import (
    Breach,
    Exits,
    Gate,
    Gateway,
    RaggedSum,
    Scale,
    Words,
    eventually,
    unpack,
    x,
)

FAKES = "tests.backends.fakes"
SCALE = f'class = "{FAKES}:Scale"\n'
GATE = f'class = "{FAKES}:Gate"\n'


@pytest.fixture
def gate():
    Gate.reset()
    yield Gate
    Gate.open.set()


async def test_loading_is_told_then_ready(serve, gate):
    async with serve(f'class = "{FAKES}:LateInit"') as replica:
        gateway = await Gateway.connect(replica.address)
        first = gateway.statuses[0]
        assert (first.state, first.signature, first.versions) == ("loading", None, ())
        early = gateway.execute(Scale.signature, [x(1.0)])
        fault = await gateway.fault(early)
        assert (fault.status, fault.code, fault.retryable) == (503, "not_ready", True)
        gate.open.set()
        ready = await gateway.state("ready")
        assert Signature.from_json(ready.signature) == Scale.signature
        assert (ready.model, ready.kind, ready.version) == ("m", "tensor", "0-static")
        assert (ready.versions, ready.slots, ready.reload) == (("0-static",), 2, "idle")
        assert ready.pid and ready.load["batch_s"] == 0.0
        await gateway.close()


async def test_requests_of_a_frame_get_their_rows(serve):
    async with serve(SCALE + "config = { factor = 3.0, picky = true }") as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        id = gateway.execute(Scale.signature, [x(1.0, 2.0), x(-1.0), x(4.0)])
        frame = await gateway.answer(id)
        first, bad, last = unpack(frame)
        assert first["y"].tolist() == [[3.0], [6.0]] and last["y"].tolist() == [[12.0]]
        assert (bad.status, bad.code) == (500, "model_error")
        meta = frame.json()
        assert (meta["version"], meta["batch"], meta["rows"]) == ("0-static", 4, [2, 0, 1])
        assert meta["queue_us"] >= 0 and meta["compute_us"] > 0
        (raised,) = [fields for event, fields in replica.log if event == "model.raised"]
        assert "-1 is below 0" in raised["error"] and "fakes.py" in raised["where"]
        await gateway.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'class = "{FAKES}:BadInit"', "RuntimeError: no weights today"),
        (f'class = "{FAKES}:Quits"', "SystemExit: 3"),
        (f'class = "{FAKES}:BadWarmUp"', "RuntimeError: I do not run"),
        (f'class = "{FAKES}:NoSignature"', "has no signature"),
        (f'class = "{FAKES}:Nowhere"', "has no class 'Nowhere'"),
        (f'class = "{FAKES}:Scale"\nconfig = {{ size = 1 }}', "size"),
        (f'class = "{FAKES}:Breach"\nconfig = {{ how = 1 }}\ndevice = "cuda:63"', "no cuda:63"),
    ],
)
async def test_a_model_that_cannot_serve_makes_it_failed_with_the_reason(serve, text, said):
    text, _, device = text.partition("\ndevice = ")
    async with serve(text, **({"device": device} if device else {})) as replica:
        gateway = await Gateway.connect(replica.address)
        status = await gateway.state("failed")
        assert said in status.reason
        assert all(before.state != "ready" for before in gateway.statuses)
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(1.0)]))
        assert fault.status == 503 and said in fault.message
        await gateway.close()


async def test_a_model_may_bring_what_it_is_warmed_up_with(serve):
    async with serve(f'class = "{FAKES}:NeedsExample"') as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        await gateway.close()


async def test_bytes_and_breaches_and_exits(serve):
    for kind, text, request, code in (
        (Words, "", {"text": [[b"a", b"bc"]]}, None),
        (Breach, 'config = { how = "dtype" }', x(1.0), "model_error"),
        (Exits, "", x(101.0), "model_error"),
    ):
        async with serve(f'class = "{FAKES}:{kind.__name__}"\n{text}') as replica:
            gateway = await Gateway.connect(replica.address)
            await gateway.state("ready")
            (answer,), _ = await gateway.ask(kind.signature, request)
            if code is None:
                assert answer["upper"] == [b"A", b"BC"]
            else:
                assert answer.code == code
            await gateway.close()


@pytest.mark.parametrize("ragged", ["refuse", "pad", "concat"])
async def test_ragged_requests_get_their_own_part(serve, ragged):
    text = f'class = "{FAKES}:RaggedSum"\nconfig = {{ ragged = "{ragged}" }}'
    async with serve(text) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        requests = [{"x": torch.full((rows, rows + 1), 1.0 * rows)} for rows in (1, 2, 3)]
        answers, _ = await gateway.ask(RaggedSum(ragged).signature, *requests)
        for request, answer in zip(requests, answers, strict=True):
            assert torch.equal(answer["twice"], request["x"] * 2)
            assert torch.equal(answer["sum"].float(), request["x"].sum(1, keepdim=True))
        await gateway.close()


async def test_a_frame_that_does_not_fit_names_the_field(serve):
    async with serve(SCALE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        fault = await gateway.fault(gateway.send(Kind.EXECUTE, {"rows": [1]}))
        assert (fault.status, fault.code) == (400, "invalid_request")
        bad = {"x": torch.ones(1, 2)}
        fault = await gateway.fault(gateway.execute(Scale.signature, [bad]))
        assert fault.param == "x" and "[batch, 2]" in fault.message
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(*[1.0] * 9)]))
        assert "max_batch_size of 8" in fault.message
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(1.0)], version="9-x"))
        assert (fault.status, fault.code) == (404, "model_version_not_found")
        await gateway.close()


async def test_what_waits_is_executed_together_whoever_sent_it(serve, gate):
    async with serve(GATE) as replica:
        gateways = [await Gateway.connect(replica.address) for _ in range(4)]
        await gateways[0].state("ready")
        first = gateways[0].execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        ids = [gateway.execute(Scale.signature, [x(2.0), x(3.0)]) for gateway in gateways]
        pinned = gateways[0].execute(Scale.signature, [x(4.0)], version="0-static")
        for gateway in gateways:  # a pong comes after the frames before the ping were taken in
            await gateway.answer(gateway.send(Kind.PING))
        gate.open.set()
        for gateway, id in zip(gateways, ids, strict=True):
            frame = await gateway.answer(id)
            assert frame.json()["batch"] == 8
            assert [answer["y"].item() for answer in unpack(frame)] == [4.0, 6.0]
        assert (await gateways[0].answer(first)).json()["batch"] == 1
        assert (await gateways[0].answer(pinned)).json()["batch"] == 1
        assert gate.batches == [1, 8, 1]
        for gateway in gateways:
            await gateway.close()


async def test_a_full_intake_refuses_and_says_so(serve, gate):
    async with serve(GATE, max_intake=4) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        running = gateway.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        waiting = gateway.execute(Scale.signature, [x(1.0, 2.0, 3.0, 4.0)])
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(5.0)]))
        assert (fault.status, fault.code, fault.retryable) == (429, "overloaded", True)
        gate.open.set()
        for id in (running, waiting):
            assert (await gateway.answer(id)).kind == Kind.RESULT
        await gateway.close()


async def test_cancel_answers_what_waits_and_not_what_runs(serve, gate):
    async with serve(GATE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        running = gateway.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        waiting = gateway.execute(Scale.signature, [x(2.0)])
        for id in (running, waiting, 999):
            gateway.send(Kind.CANCEL, id=id)
        fault = await gateway.fault(waiting)
        assert (fault.status, fault.code) == (499, "client_closed_request")
        gate.open.set()
        assert (await gateway.answer(running)).kind == Kind.RESULT
        assert gate.batches == [1]
        await gateway.close()


async def test_expired_requests_are_not_started(serve, gate):
    async with serve(GATE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        gateway.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        id = gateway.execute(Scale.signature, [x(2.0), x(3.0)], deadlines_ms=[0.0, 1e6])
        await gateway.answer(gateway.send(Kind.PING))
        gate.open.set()
        late, good = unpack(await gateway.answer(id))
        assert (late.status, late.code) == (504, "deadline_exceeded")
        assert good["y"].item() == 6.0
        assert gate.batches == [1, 1]
        await gateway.close()


async def test_a_gateway_that_dies_takes_its_waiting_frames_with_it(serve, gate):
    async with serve(GATE) as replica:
        gateway, dying = [await Gateway.connect(replica.address) for _ in range(2)]
        await gateway.state("ready")
        dying.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        dying.execute(Scale.signature, [x(2.0)])
        await dying.answer(dying.send(Kind.PING))
        await dying.close()
        await eventually(lambda: replica.status().load["waiting_rows"] == 0)
        gate.open.set()
        (answer,), _ = await gateway.ask(Scale.signature, x(3.0))
        assert answer["y"].item() == 6.0
        assert gate.batches == [1, 1]
        await eventually(lambda: replica.settled)
        await gateway.close()


async def test_a_hung_device_is_seen_and_makes_it_unready(serve, gate):
    async with serve(GATE, hang_s=0.3) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        id = gateway.execute(Scale.signature, [x(1.0)])
        status = await gateway.state("failed")
        assert "has run for" in status.reason and status.load["batch_s"] > 0.3
        assert (await gateway.answer(gateway.send(Kind.PING))).kind == Kind.PONG
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(1.0)]))
        assert fault.status == 503
        gate.open.set()
        await gateway.answer(id)
        await gateway.state("ready")
        await gateway.close()


async def test_a_lost_device_fails_the_replica_and_ends_it(serve, monkeypatch):
    monkeypatch.setattr("backends.crashes.device_is_lost", lambda error: "below 0" in str(error))
    async with serve(SCALE + "config = { picky = true }") as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        (answer,), _ = await gateway.ask(Scale.signature, x(-1.0))
        assert answer.code == "model_error"
        assert "the device is lost" in (await gateway.state("failed")).reason
        await replica.broken.wait()
        await gateway.close()


async def test_a_model_that_always_raises_does_not_flood_the_log(serve):
    async with serve(SCALE + "config = { picky = true }") as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        for _ in range(50):
            await gateway.ask(Scale.signature, x(-1.0))
        # One a second; the first tells of itself alone.
        raised = [fields["batches"] for event, fields in replica.log if event == "model.raised"]
        assert raised[0] == 1 and sum(raised) <= 50
        assert len(raised) < 50
        await gateway.close()


async def test_the_same_id_twice_breaks_the_connection(serve, gate):
    async with serve(GATE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        id = gateway.execute(Scale.signature, [x(1.0)])
        meta = {"inputs": [["x", "FP32", [1, 1]]], "rows": [1], "sizes": [4]}
        gateway.send(Kind.EXECUTE, meta, [bytes(4)], id=id)
        async with asyncio.timeout(10):
            await gateway.closed.wait()
        assert "sent twice" in gateway.frames[-1].json()["message"]
        gate.open.set()


async def test_control(serve):
    async with serve(SCALE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        reply = await gateway.control("status")
        assert Status.from_json(reply.json()).state == "ready"
        assert Status.from_json((await gateway.control("drain")).json()).state == "draining"
        fault = await gateway.fault(gateway.execute(Scale.signature, [x(1.0)]))
        assert fault.status == 503 and "drained by an operator" in fault.message
        await gateway.state("draining")
        await gateway.control("undrain")
        await gateway.state("ready")
        for op, status, said in (
            ("reload", 409, {}),
            ("rollback", 409, {"version": "1-a"}),
            ("rollback", 400, {}),
            ("fly", 501, {}),
        ):
            frame = await gateway.control(op, **said)
            assert (frame.kind, frame.json()["status"]) == (Kind.ERROR, status)
        frame = await gateway.control("reload", step=4)
        assert (frame.json()["status"], frame.json()["param"]) == (400, "step")
        await gateway.close()


async def test_draining_answers_what_was_accepted(serve, gate):
    async with serve(GATE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        running = gateway.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        waiting = gateway.execute(Scale.signature, [x(2.0)])
        await gateway.answer(gateway.send(Kind.PING))
        replica.drain("stopping")
        await gateway.state("draining")
        assert not replica.settled
        gate.open.set()
        for id in (running, waiting):
            assert (await gateway.answer(id)).kind == Kind.RESULT
        await eventually(lambda: replica.settled)
        await gateway.close()


async def test_closing_answers_what_is_still_owed_with_a_fault(serve, gate):
    async with serve(GATE) as replica:
        gateway = await Gateway.connect(replica.address)
        await gateway.state("ready")
        id = gateway.execute(Scale.signature, [x(1.0)])
        await asyncio.to_thread(gate.entered.wait, 30)
        threading.Timer(0.2, gate.open.set).start()
        await replica.close()
        fault = await gateway.fault(id)
        assert (fault.status, fault.retryable) == (503, True)
