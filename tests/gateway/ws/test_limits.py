"""What one socket may take, and what becomes of clients that do not read or do not live."""

from __future__ import annotations

import asyncio

from backends.wire import Signature, TensorSpec
from gateway.request import Tensor
from gateway.ws import SocketLimits
from gateway.ws.socket import PIECE
from tests.gateway.oip.fakes import FakeModel, answered
from tests.gateway.ws.fakes import Talk, client_frame, infer, read_frames, text
from tests.gateway.ws.test_socket import held


def wordy(size: int) -> FakeModel:
    """Answers with one string of `size` bytes."""
    signature = Signature(
        (TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "BYTES", ()),), max_batch_size=8
    )

    def run(request):
        data = size.to_bytes(4, "little") + b"y" * size
        return answered(request, Tensor("y", "BYTES", (1,), data))

    return FakeModel(signature=signature, run=run)


async def test_too_many_requests_in_flight_are_refused_one_by_one():
    talk = Talk(held(), limits=SocketLimits(max_in_flight=2)).send(*map(infer, "abc"))
    error = await talk.one()
    assert (error["id"], error["status"], error["retryable"]) == ("c", 429, True)
    assert "2 requests" in error["message"]
    talk.model.release(talk.model.submitted[0])
    talk.send(infer("d"))
    assert len(talk.model.submitted) == 3


async def test_the_bytes_of_the_requests_in_flight_are_bounded():
    talk = Talk(held(), limits=SocketLimits(max_held=150))
    talk.send(infer("a" * 200))  # alone, one is taken whatever its size
    assert await talk.said() == []
    talk.send(infer("b"))
    assert (await talk.one())["status"] == 429
    talk.model.release(talk.model.submitted[0])
    assert (await talk.one())["id"] == "a" * 200
    talk.send(infer("c"))
    assert await talk.said() == [] and len(talk.model.submitted) == 2


async def test_the_bytes_of_all_sockets_are_bounded():
    limits = SocketLimits(max_total=400)
    one = Talk(held(), limits=limits)
    other = Talk(one.model, surface=one.surface)
    one.send(infer("a"), infer("b"))
    other.send(infer("c"), infer("d"))
    assert (await other.one())["status"] == 429
    # Half a message that would pass the bound costs its own socket.
    other.send(client_frame(1, b" " * 500)[:400])
    assert await other.one() == 1013
    one.model.release(one.model.submitted[0])
    assert (await one.one())["id"] == "a" and one.surface.stats.open == 1


async def test_a_slow_reader_is_not_read_and_gets_everything_in_the_end():
    talk = Talk(wordy(3 * PIECE))
    talk.transport.client_reads = False
    talk.send(infer("a"), infer("b"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not talk.transport.reading
    # The transport was given a piece or two; the rest is kept here, and counted.
    assert talk.transport.waiting < 3 * PIECE
    assert talk.surface.held > 4 * PIECE
    while talk.transport.waiting:
        assert talk.transport.waiting < 3 * PIECE
        talk.transport.client_read_all()
    assert talk.transport.reading and talk.surface.held == 0
    answers = await talk.said()
    assert [answer["id"] for answer in answers] == ["a", "b"]
    assert [len(answer["outputs"][0]["data"][0]) for answer in answers] == [3 * PIECE] * 2


async def test_a_slow_reader_keeps_nobody_else_waiting():
    slow = Talk(wordy(3 * PIECE))
    other = Talk(slow.model, surface=slow.surface)
    slow.transport.client_reads = False
    slow.send(infer("a"))
    assert (await other.send(infer("b")).one())["id"] == "b"


async def test_a_reader_that_takes_nothing_is_told_1008_and_cut_off():
    talk = Talk(wordy(3 * PIECE))
    talk.transport.client_reads, talk.model.held = False, True
    talk.send(infer("a"), infer("b"))
    talk.model.release(talk.model.submitted[0])
    await asyncio.sleep(0)
    talk.clock.now += 29
    talk.surface.sweep(talk.clock.now)
    assert not talk.model.submitted[1].finished
    talk.clock.now += 2
    talk.surface.sweep(talk.clock.now)
    assert talk.model.submitted[1].finished and talk.surface.stats.open == 1
    # It may still read what it has begun to get, and then why.
    talk.transport.client_reads = True
    talk.transport.client_read_all()
    message, code = await talk.said()
    assert message["id"] == "a" and code == 1008
    assert talk.surface.stats.open == 0 and talk.surface.held == 0


async def test_a_pause_is_timed_from_its_beginning():
    talk = Talk(wordy(PIECE))
    talk.transport.client_reads = False
    for name in "abc":
        talk.send(infer(name))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    # The transport has taken all of it and asks to wait; nothing waits here.
    assert talk.transport.waiting > PIECE and talk.surface.held == 0
    talk.clock.now += 29
    talk.surface.sweep(talk.clock.now)
    assert talk.surface.stats.closed == {}
    talk.transport.client_read_all()
    talk.clock.now += 3
    talk.surface.sweep(talk.clock.now)
    assert talk.surface.stats.closed == {}


async def test_one_that_does_not_even_take_that_is_reset():
    talk = Talk(wordy(3 * PIECE))
    talk.transport.client_reads = False
    talk.send(infer("a"))
    await asyncio.sleep(0)
    for _ in range(2):
        talk.clock.now += 31
        talk.surface.sweep(talk.clock.now)
    assert talk.transport.aborted and talk.surface.held == 0
    assert dict(talk.surface.stats.closed) == {1008: 1}


async def test_answers_that_pile_up_end_the_socket():
    talk = Talk(wordy(PIECE), limits=SocketLimits(max_unsent=5 * PIECE))
    talk.model.held = True
    talk.send(*[infer(str(number)) for number in range(20)])
    talk.transport.client_reads = False
    for request in talk.model.submitted:
        talk.model.release(request)
        await asyncio.sleep(0)
    assert dict(talk.surface.stats.closed) == {1008: 1}
    assert all(request.finished for request in talk.model.submitted)
    assert talk.surface.held < 5 * PIECE
    talk.transport.client_reads = True
    talk.transport.client_read_all()
    assert (await talk.said())[-1] == 1008


async def test_all_that_waits_for_slow_readers_is_bounded():
    limits = SocketLimits(max_total=5 * PIECE)
    model = wordy(PIECE)
    model.held = True
    first = Talk(model, limits=limits)
    talks = [first, Talk(model, surface=first.surface), Talk(model, surface=first.surface)]
    for talk in talks:
        talk.transport.client_reads = False
        talk.send(*map(infer, "abcd"))
    for request in model.submitted:
        model.release(request)
        await asyncio.sleep(0)
        assert first.surface.held <= 7 * PIECE
    closed = first.surface.stats.closed
    assert closed[1013] >= 1 and set(closed) == {1013}


async def test_silence_is_broken_by_a_ping_and_ended_without_an_answer():
    talk = Talk()
    talk.clock.now += 19
    talk.surface.sweep(talk.clock.now)
    assert await talk.said() == []
    talk.clock.now += 2
    talk.surface.sweep(talk.clock.now)
    talk.surface.sweep(talk.clock.now)
    assert await talk.said() == [("PING", b"")]
    talk.send(client_frame(10, b""))
    talk.clock.now += 21
    talk.surface.sweep(talk.clock.now)
    assert await talk.said() == [("PING", b"")]
    talk.clock.now += 20
    talk.surface.sweep(talk.clock.now)
    assert talk.transport.aborted and dict(talk.surface.stats.closed) == {1006: 1}


async def test_a_close_that_cannot_leave_is_given_up():
    talk = Talk(wordy(3 * PIECE))
    talk.transport.client_reads = False
    talk.send(infer("a"), b"\x81\x00")
    talk.clock.now += 4
    talk.surface.sweep(talk.clock.now)
    await asyncio.sleep(0)
    assert not talk.transport.closed
    talk.clock.now += 2
    talk.surface.sweep(talk.clock.now)
    assert talk.transport.aborted and talk.surface.held == 0


async def test_the_timer_runs_while_sockets_are_open():
    talk = Talk()
    timer = talk.surface._timer
    assert timer is not None
    talk.clock.now += 25
    talk.surface._tick()
    assert await talk.said() == [("PING", b"")]
    talk.transport.close()
    talk.surface._tick()
    assert talk.surface._timer is None
    timer.cancel()
    again = Talk(surface=talk.surface)
    assert talk.surface._timer is not None
    again.surface.close()
    assert again.transport.aborted and talk.surface._timer is None


async def test_what_leaves_is_whole_frames_whatever_the_pauses():
    talk = Talk(wordy(PIECE // 3), limits=SocketLimits())
    for number in range(40):
        talk.transport.client_reads = number % 3 == 0
        talk.send(infer(str(number)), text({"type": "ping"}))
        await asyncio.sleep(0)
        if number % 5 == 0:
            talk.transport.client_reads = True
            talk.transport.client_read_all()
    talk.transport.client_reads = True
    while talk.surface.held:
        talk.transport.client_read_all()
        await asyncio.sleep(0)
    raw = talk.wire.raw
    frames = read_frames(raw[raw.find(b"\r\n\r\n") + 4 :])
    assert len(frames) == talk.surface.stats.sent
