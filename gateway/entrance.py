"""Where clients come in: one worker's listening socket, in the clear or with TLS.

Owns the server on it. New certificates mean a new server on the same socket: connections that are
open keep theirs, and those that wait in the kernel's queue are let in by the next one. Invariant: a
renewal that fails leaves the old server as it was.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from gateway.config_tls import ListenTls
from gateway.tls import HANDSHAKE_S, SHUTDOWN_S, for_listener, stamp

BACKLOG = 4096


class Entrance:
    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], tls: ListenTls
    ) -> None:
        # Whether calls block is one flag for all copies of a socket, and a copy sets it to what its
        # original says: a renewal that fails must not leave a server that waits for clients.
        listening.setblocking(False)
        self._listening, self._protocol, self._tls = listening, protocol, tls
        self._server: asyncio.Server | None = None
        self._stamp: object = None

    @property
    def is_open(self) -> bool:
        return self._server is not None

    async def open(self) -> None:
        """Raises BadCertificate."""
        loop, seen = asyncio.get_running_loop(), stamp(self._tls)
        # A server closes its socket; this one is to outlive servers.
        own = self._listening.dup()
        try:
            if not self._tls.used:
                self._server = await loop.create_server(self._protocol, sock=own, backlog=BACKLOG)
            else:
                self._server = await loop.create_server(
                    self._protocol,
                    sock=own,
                    backlog=BACKLOG,
                    ssl=for_listener(self._tls),
                    ssl_handshake_timeout=HANDSHAKE_S,
                    ssl_shutdown_timeout=SHUTDOWN_S,
                )
        except BaseException:
            own.close()
            raise
        self._stamp = seen

    async def renew(self) -> None:
        """Use the certificates that are there now. Raises BadCertificate."""
        old = self._server
        if old is None or stamp(self._tls) == self._stamp:
            return
        await self.open()
        old.close()

    def close(self) -> None:
        """Let nobody in any more: who comes now is refused by the kernel, and waits for nobody."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._listening.close()
