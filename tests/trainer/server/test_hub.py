"""Who is let in, what is refused, and that a connection's end is always noticed."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable

import pytest
import torch

from trainer.server.address import Address, BadToken, find, make_token, remove, write
from trainer.server.frames import HEAD_LIMIT, PeerBroke, PeerRefused, receive, send
from trainer.server.hub import Hub, Peer
from trainer.server.tickets import Ticket
from trainer.server.worker import Link

TOKEN = "0123456789abcdef"


class Flow:
    """Grants one ticket with some weights, accepts what is pushed, and takes notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.left_once = asyncio.Event()

    def joined(self, peer: Peer) -> None:
        self.notes.append("joined")

    def asked(self, peer: Peer, have: int | None) -> None:
        peer.asks = False
        body = torch.arange(16, dtype=torch.uint8)
        peer.send({"ticket": Ticket(0, 0, 1, 4, 1).row, "version": 3}, None if have == 3 else body)

    def pushed(self, peer: Peer, head: dict, body: torch.Tensor) -> None:
        self.notes.append(f"pushed {int(body.sum())}")
        peer.send({"accepted": True})

    def beat(self, peer: Peer) -> None:
        self.notes.append("beat")

    def left(self, peer: Peer) -> None:
        self.notes.append("left")
        self.left_once.set()


async def served(
    act: Callable[[Address], None], lease_s: float = 5.0, flow: Flow | None = None
) -> Flow:
    """Runs `act` against a hub, in a thread of its own."""
    flow = flow or Flow()
    hub = Hub(flow, TOKEN, "same", 1024, lease_s)
    host, port = (await hub.listen("127.0.0.1", 0)).rsplit(":", 1)
    try:
        await asyncio.to_thread(act, Address(host, int(port), TOKEN))
        if "joined" in flow.notes:
            await asyncio.wait_for(flow.left_once.wait(), 10)
    finally:
        await hub.close()
    assert flow.notes.count("joined") == flow.notes.count("left")
    return flow


async def test_a_worker_gets_tickets_and_pushes():
    def act(address: Address) -> None:
        link = Link(address, "w", "same", 1024)
        asked = link.ask(None)
        assert asked is not None and asked[:2] == (Ticket(0, 0, 1, 4, 1), 3)
        assert asked[2] is not None and asked[2].sum() == 120
        again = link.ask(3)
        assert again is not None and again[2] is None
        assert link.push({"ticket": 0}, torch.ones(8, dtype=torch.uint8))
        link.close()

    flow = await served(act)
    assert "pushed 8" in flow.notes


@pytest.mark.parametrize(
    ("token", "fingerprint", "name", "said"),
    [
        ("another token!!!", "same", "w", "does not know the run's token"),
        (TOKEN, "other", "w", "configuration is another"),
        (TOKEN, "same", "no name", "letters, digits"),
    ],
)
async def test_strangers_are_refused(token, fingerprint, name, said):
    def act(address: Address) -> None:
        with pytest.raises(PeerRefused, match=said):
            Link(Address(address.host, address.port, token), name, fingerprint, 1024)

    assert (await served(act)).notes == []


async def test_a_false_server_is_found_out():
    """One that only repeats what it heard does not know the token."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pretend() -> None:
        connection, _ = listener.accept()
        with connection:
            send(connection, {"protocol": 1, "nonce": "0" * 32})
            head, _ = receive(connection, 0)
            send(connection, {"proof": head["proof"]})

    thread = threading.Thread(target=pretend)
    thread.start()
    with pytest.raises(PeerRefused, match="server does not know"):
        Link(Address("127.0.0.1", listener.getsockname()[1], TOKEN), "w", "same", 1024)
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    "bytes_",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        struct.pack("<IQ", HEAD_LIMIT + 1, 0),
        struct.pack("<IQ", 2, 2**40) + b"{}",
        struct.pack("<IQ", 3, 0) + b"nul",
        struct.pack("<IQ", 2, 0) + b"[]",
        b"",
    ],
)
async def test_what_is_no_frame_ends_the_connection(bytes_):
    def before(address: Address) -> None:
        with socket.create_connection((address.host, address.port), 10) as connection:
            receive(connection, 0)
            connection.sendall(bytes_)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    def after(address: Address) -> None:
        link = Link(address, "w", "same", 1024)
        link._socket.sendall(bytes_)
        link._socket.shutdown(socket.SHUT_WR)
        with pytest.raises((OSError, PeerBroke)):
            link._hear()
        link.close()

    await served(before)
    await served(after)


async def test_two_questions_at_once_are_one_too_many():
    def act(address: Address) -> None:
        link = Link(address, "w", "same", 1024)
        link._say({"type": "what?"})
        with pytest.raises(OSError):
            link._hear()
        link.close()

    await served(act)


async def test_a_silent_worker_is_taken_for_dead_and_a_busy_one_is_not():
    def silent(address: Address) -> None:
        link = Link(address, "w", "same", 1024)
        link._closed.set()  # its heartbeat stops
        with pytest.raises(OSError):
            link._hear()
        link.close()

    await served(silent, lease_s=0.2)

    flow = Flow()

    def busy(address: Address) -> None:
        link = Link(address, "w", "same", 1024)
        # Longer than a lease, of which each beat is a quarter, it says only that it lives.
        while flow.notes.count("beat") < 5 and "left" not in flow.notes:
            link._closed.wait(0.01)
        assert link.ask(None) is not None
        link.close()

    await served(busy, lease_s=2.0, flow=flow)
    assert flow.notes.count("beat") >= 5


def test_the_address_of_a_run_is_its_owners_business(tmp_path):
    assert find(tmp_path, None, {}) is None
    write(tmp_path, "localhost:7400", TOKEN)
    assert (tmp_path / "server.json").stat().st_mode & 0o077 == 0
    assert find(tmp_path, None, {}) == Address("localhost", 7400, TOKEN)
    environ = {"PENSTOCK_RUN_TOKEN": "f" * 20}
    assert find(tmp_path, "there:1", environ) == Address("there", 1, "f" * 20)
    with pytest.raises(BadToken, match="PENSTOCK_RUN_TOKEN"):
        find(tmp_path, "there:1", {})
    with pytest.raises(BadToken, match="at least 16"):
        make_token({"PENSTOCK_RUN_TOKEN": "short"})
    assert len(make_token({})) == 32
    remove(tmp_path)
    remove(tmp_path)
    assert find(tmp_path, None, {}) is None
