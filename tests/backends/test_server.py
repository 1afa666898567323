"""Connections: greetings, pings and statuses; bad peers, slow peers and dead peers harm nobody."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends import wire
from backends.errors import CannotListen, Overloaded, Unsupported
from backends.server import Server
from backends.wire import HEADER, MAGIC, VERSION, Kind, Status
from tests.backends.fakes import Gateway, eventually


class EchoEngine:
    """Answers EXECUTE with its data at once; `big` bytes more if asked."""

    def __init__(self):
        self.big = 0
        self.reason = ""
        self.gone, self.cancelled = [], []

    def status(self):
        return Status(model="m", kind="tensor", state="ready", reason=self.reason)

    def execute(self, connection, frame):
        if bytes(frame.data) == b"full":
            raise Overloaded("no room")
        if bytes(frame.data) == b"defect":
            raise ZeroDivisionError("a defect")
        data = [frame.data, bytes(self.big)]
        connection.send(wire.encode(Kind.RESULT, frame.id, {}, data))

    def call(self, connection, frame):
        raise Unsupported("no calls")

    def cancel(self, connection, id):
        self.cancelled.append(id)

    def control(self, op, arguments):
        return {"op": op, **arguments}

    def lost(self, connection):
        self.gone.append(connection)


@asynccontextmanager
async def serving(address=None):
    events = []
    server = Server(EchoEngine(), lambda event, **fields: events.append((event, fields)))
    with tempfile.TemporaryDirectory() as folder:
        server.address = await server.listen(address or f"unix:{folder}/s.sock")
        server.log = events
        try:
            yield server
        finally:
            await server.close()


async def test_hello_is_answered_with_status_and_ping_with_pong():
    async with serving() as server:
        gateway = await Gateway.connect(server.address)
        assert gateway.statuses[0].model == "m"
        id = gateway.send(Kind.PING)
        assert (await gateway.answer(id)).kind == Kind.PONG
        await gateway.close()


async def test_ping_needs_no_hello():
    async with serving() as server:
        gateway = await Gateway.connect(server.address, hello=False)
        assert (await gateway.answer(gateway.send(Kind.PING))).kind == Kind.PONG
        await gateway.close()


async def test_over_tcp_on_a_port_that_the_system_picks():
    async with serving("tcp:127.0.0.1:0") as server:
        assert not server.address.endswith(":0")
        gateway = await Gateway.connect(server.address)
        frame = await gateway.answer(gateway.send(Kind.EXECUTE, {}, [b"abc"]))
        assert bytes(frame.data) == b"abc"
        await gateway.close()


async def test_faults_and_defects_answer_their_frame_and_nothing_else():
    async with serving() as server:
        gateway = await Gateway.connect(server.address)
        full = gateway.send(Kind.EXECUTE, {}, [b"full"])
        defect = gateway.send(Kind.EXECUTE, {}, [b"defect"])
        call = gateway.send(Kind.CALL, {})
        control = gateway.send(Kind.CONTROL, {"op": "x", "a": 1})
        unnamed = gateway.send(Kind.CONTROL, {})
        good = gateway.send(Kind.EXECUTE, {}, [b"good"])
        gateway.send(Kind.CANCEL, id=good)
        assert (await gateway.fault(full)).code == "overloaded"
        fault = await gateway.fault(defect)
        assert (fault.status, fault.code) == (500, "internal_error")
        assert (await gateway.fault(call)).status == 501
        assert (await gateway.answer(control)).json() == {"op": "x", "a": 1}
        assert (await gateway.fault(unnamed)).param == "op"
        assert bytes((await gateway.answer(good)).data) == b"good"
        await gateway.answer(gateway.send(Kind.PING))
        assert server.engine.cancelled == [good]
        assert ("frame.crashed", {"kind": "EXECUTE", "error": "ZeroDivisionError('a defect')"}) in (
            server.log
        )
        await gateway.close()


HELLO = wire.encode(Kind.HELLO, 0, {"gateway": "g", "protocol": VERSION})[0]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n____", "expected a frame"),
        (HEADER.pack(MAGIC, VERSION + 1, Kind.HELLO, 0, 0, 0), "wire version"),
        (HEADER.pack(MAGIC, VERSION, Kind.EXECUTE, 0, 0, 1), "expected HELLO first"),
        (wire.encode(Kind.HELLO, 0, {"gateway": "g", "protocol": 99})[0], "protocol 1"),
        (wire.encode(Kind.HELLO, 0, [1])[0], "protocol 1"),
        (HELLO + wire.encode(Kind.STATUS, 0, {})[0], "does not send STATUS"),
        (HELLO + HEADER.pack(MAGIC, VERSION, Kind.CONTROL, 1, 0, 1) + b"{", "not JSON"),
    ],
)
async def test_a_peer_that_does_not_speak_the_wire_is_told_why_and_closed(sent, said):
    async with serving() as server:
        other = await Gateway.connect(server.address)
        gateway = await Gateway.connect(server.address, hello=False)
        gateway.transport.write(sent)
        async with asyncio.timeout(10):
            await gateway.closed.wait()
        (frame,) = gateway.frames
        fault = wire.Fault.from_json(frame.json())
        assert (frame.id, fault.code) == (0, "bad_wire")
        assert said in fault.message
        await other.answer(other.send(Kind.EXECUTE, {}, [b"x"]))
        await other.close()


async def test_status_goes_to_all_once_a_turn():
    async with serving() as server:
        gateways = [await Gateway.connect(server.address) for _ in range(3)]
        for number in range(5):
            server.engine.reason = str(number)
            server.push_status()
        for gateway in gateways:
            await gateway.answer(gateway.send(Kind.PING))
            assert [status.reason for status in gateway.statuses] == ["", "4"]
            await gateway.close()


async def test_a_gateway_that_does_not_read_is_not_read_and_holds_up_nobody():
    async with serving() as server:
        server.engine.big = 4 << 20
        slow = await Gateway.connect(server.address)
        slow.transport.pause_reading()
        # So large that one read brings one frame.
        sent = [slow.send(Kind.EXECUTE, {}, [bytes(200_000)]) for _ in range(50)]
        (connection,) = server.connections
        await eventually(lambda: connection.paused)
        quick = await Gateway.connect(server.address)
        server.engine.big = 0
        await quick.answer(quick.send(Kind.EXECUTE, {}, [b"y"]))
        # What it is owed is bounded: most of its frames have not even been read.
        assert not connection.drained and not server.drained
        assert connection._transport.get_write_buffer_size() < 8 * (4 << 20)
        server.engine.reason = "first"
        server.push_status()
        await quick.until(lambda: quick.statuses[-1].reason == "first")
        server.engine.reason = "second"
        server.push_status()
        await quick.until(lambda: quick.statuses[-1].reason == "second")
        slow.transport.resume_reading()
        for id in sent:
            await slow.answer(id)
        await slow.until(lambda: slow.statuses[-1].reason == "second")
        assert "first" not in [status.reason for status in slow.statuses]
        await slow.close()
        await quick.close()


async def test_a_dead_gateway_is_forgotten():
    async with serving() as server:
        gateway = await Gateway.connect(server.address)
        (connection,) = server.connections
        await gateway.close()
        await eventually(lambda: bool(server.engine.gone))
        assert server.engine.gone == [connection] and not server.connections
        connection.send([b"into the void"])
        assert connection.drained


# ------------------------------------------------------------------------------------- listening


async def test_a_socket_of_a_dead_process_is_replaced(tmp_path):
    path = Path(tempfile.mkdtemp()) / "s.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with serving(f"unix:{path}") as server:
        gateway = await Gateway.connect(server.address)
        await gateway.close()
    assert not path.exists()


async def test_a_socket_in_use_and_a_file_are_left_alone(tmp_path):
    async with serving() as server:
        with pytest.raises(CannotListen, match="another process does"):
            await Server(EchoEngine(), print).listen(server.address)
        gateway = await Gateway.connect(server.address)
        await gateway.close()
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(CannotListen, match="it is a file"):
        await Server(EchoEngine(), print).listen(f"unix:{file}")
    assert file.read_text() == "precious"


async def test_the_name_of_a_successor_is_not_removed():
    path = Path(tempfile.mkdtemp()) / "s.sock"
    async with serving(f"unix:{path}"):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("unix:", "expected"),
        ("http://x", "expected"),
        ("tcp:1234", "expected"),
        ("tcp:127.0.0.1:99999", "cannot listen"),
        ("unix:/nowhere/at/all.sock", "No such file"),
        ("unix:/tmp/" + "x" * 200, "too long"),
    ],
)
async def test_addresses_that_cannot_be_listened_on_are_named(address, said):
    with pytest.raises(CannotListen) as found:
        await Server(EchoEngine(), print).listen(address)
    assert said in found.value.message and address in found.value.message


async def test_close_sends_what_is_owed():
    async with serving() as server:
        gateway = await Gateway.connect(server.address)
        id = gateway.send(Kind.EXECUTE, {}, [b"last"])
        await gateway.answer(id)
        await server.close()
        async with asyncio.timeout(10):
            await gateway.closed.wait()
