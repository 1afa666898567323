"""The sockets on which clients connect: bound once, by the supervisor, and passed to the workers.

Owns binding and what is said when it fails; accepts nothing. Each worker has a socket of its own on
the same port (SO_REUSEPORT), so the kernel spreads connections, and the supervisor keeps all of
them open: what waits in the queue of a dead worker is accepted by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from gateway.config import split_listen

# The kernel cuts it to net.core.somaxconn.
BACKLOG = 4096


class ListenError(Exception):
    """The address cannot be listened on; the message says what to change."""


class Listening:
    """`key` is the configuration's name of the address: "server.listen". Raises ListenError."""

    def __init__(self, listen: str, count: int, *, key: str, tls: bool = False) -> None:
        self._tls = tls  # what will be spoken there
        self._listen, self._key, self._path = listen, key, ""
        self.sockets: list[socket.socket] = []
        target = split_listen(listen)
        try:
            if isinstance(target, str):
                self._bind_path(target, count)
            else:
                self._bind_port(*target, count)
            for bound in self.sockets:
                bound.listen(BACKLOG)
        except OSError as error:
            self.close()
            raise self._explained(error) from error

    @property
    def url(self) -> str:
        """As a client writes it, with the real port."""
        name = self.sockets[0].getsockname()
        if isinstance(name, str):
            return f"unix:{name}"
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"{'https' if self._tls else 'http'}://{host}:{name[1]}"

    def close(self) -> None:
        for bound in self.sockets:
            bound.close()
        self.sockets.clear()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._path = ""

    def _bind_port(self, host: str, port: int, count: int) -> None:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        family, _, _, _, address = found[0]
        if port:
            # Another gateway's SO_REUSEPORT sockets would share the port with us in silence.
            with _tcp(family, reuse_port=False) as probe:
                probe.bind(address)
        for _ in range(count):
            bound = _tcp(family, reuse_port=True)
            self.sockets.append(bound)
            bound.bind(address)
            # The others follow to the port that the first was given.
            address = bound.getsockname()

    def _bind_path(self, path: str, count: int) -> None:
        """One socket, as often as it is needed: its queue is shared by all workers."""
        _remove_stale(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(bound)
        bound.bind(path)
        self._path = path
        self.sockets += [bound.dup() for _ in range(count - 1)]

    def _explained(self, error: OSError) -> ListenError:
        advice = f'change "{self._key}" in the configuration, or use --set {self._key}=ADDRESS'
        if error.errno == errno.EADDRINUSE:
            return ListenError(f"{self._listen} is in use by another process; stop it or {advice}")
        if error.errno == errno.EACCES:
            return ListenError(f"we may not listen on {self._listen}; {advice}")
        return ListenError(f"cannot listen on {self._listen}: {error.strerror or error}; {advice}")


def _tcp(family: int, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    # Connections of an earlier gateway that still say goodbye are no reason to refuse.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
        # "[::]" is every address of the host, the IPv4 ones too.
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock


def _remove_stale(path: str) -> None:
    """Unlink a socket on which nobody listens. Raises OSError when it is in use, or is a file."""
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise OSError(errno.EEXIST, "a file that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "in use")
