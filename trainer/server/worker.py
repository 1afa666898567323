"""A worker: asks for tickets, computes what they ask for, and pushes it, until the run is over.

Owns one connection at a time and its heartbeat. It keeps nothing: killed at any moment, it leaves a
ticket behind that another takes. When the server goes away it looks for it for `sync.patience_s`,
also under another address.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from trainer.build import Session
from trainer.elastic import Stop
from trainer.errors import TrainerError
from trainer.server import frames
from trainer.server.address import Address, find
from trainer.server.frames import PeerBroke, PeerRefused
from trainer.server.layout import digest
from trainer.server.tickets import Ticket
from trainer.server.work import Workplace

RETRY_S = 0.2
CONNECT_S = 10.0


class ServerGone(TrainerError):
    """No server was found for longer than the worker's patience."""

    code = "server_gone"


class Link:
    """An authenticated connection; a thread keeps its lease alive while the worker computes."""

    def __init__(self, address: Address, name: str, fingerprint: str, limit: int) -> None:
        """Raises OSError, PeerBroke or PeerRefused."""
        self._limit, self._lock = limit, threading.Lock()
        self._socket = socket.create_connection((address.host, address.port), CONNECT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.name, lease = self._greet(address.token, name, fingerprint)
        except BaseException:
            self._socket.close()
            raise
        # The answer to an ask comes when there is a ticket; a dead server ends the connection.
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(lease / 4,), daemon=True)
        self._thread.start()

    def _greet(self, token: str, name: str, fingerprint: str) -> tuple[str, float]:
        mine = frames.nonce()
        head, _ = self._hear()
        theirs = str(head.get("nonce"))
        if head.get("protocol") != frames.PROTOCOL:
            raise PeerRefused("the server speaks another protocol")
        proof = frames.proof(token, "worker", theirs, mine)
        said = {"nonce": mine, "name": name, "proof": proof, "fingerprint": fingerprint}
        frames.send(self._socket, said)
        head, _ = self._hear()
        if not frames.proves(head.get("proof"), token, "server", theirs, mine):
            raise PeerRefused("the server does not know the run's token")
        head, _ = self._hear()
        return str(head["welcome"]), float(head["lease_s"])

    def ask(self, have: int | None) -> tuple[Ticket, int, Tensor | None] | None:
        """A ticket, the version to start from, and its weights unless it is the one at hand; None
        when the run is over."""
        self._say({"type": "ask", "have": have})
        head, body = self._hear()
        if head.get("over"):
            return None
        ticket, version = Ticket(*head["ticket"]), int(head["version"])
        return ticket, version, torch.frombuffer(body, dtype=torch.uint8) if body else None

    def push(self, head: dict[str, Any], body: Tensor) -> bool:
        """Whether it was accepted; not if the lease was over."""
        self._say({"type": "push", **head}, body.numpy().data)
        answer, _ = self._hear()
        return bool(answer.get("accepted"))

    def close(self) -> None:
        self._closed.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _hear(self) -> tuple[dict[str, Any], bytearray]:
        head, body = frames.receive(self._socket, self._limit)
        if "refused" in head:
            raise PeerRefused(f"the server refused this worker: {head['refused']}")
        return head, body

    def _say(self, head: dict[str, Any], body: memoryview | bytes = b"") -> None:
        with self._lock:
            frames.send(self._socket, head, body)

    def _beat(self, every: float) -> None:
        with suppress(OSError):
            while not self._closed.wait(every):
                self._say({"type": "beat"})


class Worker:
    """`find` gives the server's address now, or None."""

    def __init__(
        self,
        place: Workplace,
        fingerprint: str,
        patience_s: float,
        find: Callable[[], Address | None],
        stop: Stop,
    ) -> None:
        self._place, self._fingerprint = place, fingerprint
        self._patience, self._find, self._stop = patience_s, find, stop
        self._base: tuple[int, Tensor] | None = None
        self.tickets = 0

    def run(self) -> None:
        """Until the run is over or a signal. Raises ServerGone or PeerRefused."""
        seen, until = False, time.monotonic() + self._patience
        while not self._stop.asked:
            address = self._find()
            if address is None and seen:
                return  # it said goodbye to all by removing its address
            try:
                if address is None:
                    raise ConnectionRefusedError("no server says that it is there")
                if self._serve(address):
                    return
                seen, until = True, time.monotonic() + self._patience
            except (OSError, PeerBroke) as error:
                if self._base is not None:
                    seen, until, self._base = True, time.monotonic() + self._patience, None
                if time.monotonic() >= until:
                    raise ServerGone(f"no server for {self._patience:g} s: {error}") from error
                time.sleep(RETRY_S)

    def _serve(self, address: Address) -> bool:
        """Over one connection; whether the run is over."""
        name = f"{socket.gethostname()[:40]}-{os.getpid()}"
        link = Link(address, name, self._fingerprint, self._place.weights.nbytes)
        self._base = None
        try:
            while not self._stop.asked:
                asked = link.ask(self._base[0] if self._base else None)
                if asked is None:
                    return True
                ticket, version, packed = asked
                if packed is not None:
                    self._base = (version, packed)
                if self._base is None or self._base[0] != version:
                    raise PeerBroke("the server did not send the weights")
                self._work(link, ticket, *self._base)
            return True
        finally:
            link.close()

    def _work(self, link: Link, ticket: Ticket, version: int, packed: Tensor) -> None:
        self._place.load(packed)
        found = self._place.contribute(ticket)
        head = {
            "ticket": ticket.number,
            "seconds": found.seconds,
            "metrics": dict(found.metrics),
            "hash": digest(found.packed),
        }
        self.tickets += link.push(head, found.packed)


def where(session: Session, given: str | None, environ: Mapping[str, str]) -> Callable[[], Any]:
    folder = session.loaded.config.folder
    return lambda: find(folder, given, environ)
