"""Idle keep-alive connections, each with one request answered, held by a process of its own.

Owns the sockets. Says `held N` when all are open, then `answered` for each line on standard input
after one more request on the first of them; ends when the input does.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
from contextlib import suppress

# Connections of one source address: its ephemeral ports (28,232 by default) must suffice.
PER_SOURCE = 20_000
TOGETHER = 100
IP_BIND_ADDRESS_NO_PORT = 24  # of Linux; Python 3.12 has the name


class HolderFailed(Exception):
    """A connection was refused or closed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("count", type=int)
    args = parser.parse_args()
    raise_file_limit()
    request = f"GET {args.path} HTTP/1.1\r\nhost: {args.host}\r\n\r\n".encode()
    try:
        held = _open(args.host, args.port, request, args.count)
        print(f"held {len(held)}", flush=True)
        for _ in sys.stdin:
            _ask(held[0], request)
            print("answered", flush=True)
    except (OSError, HolderFailed) as error:
        print(f"failed {error}", flush=True)
        return 1
    return 0


def raise_file_limit(wanted: int = 0) -> int:
    """As many open files as the system lets this process and its children have; `wanted` at least,
    where it may say so."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _open(host: str, port: int, request: bytes, count: int) -> list[socket.socket]:
    held: list[socket.socket] = []
    while len(held) < count:
        opened = range(len(held), min(len(held) + TOGETHER, count))
        new = [_connect(host, port, 1 + index // PER_SOURCE) for index in opened]
        for connection in new:
            _ask(connection, request)
        held += new
    return held


def _connect(host: str, port: int, source: int) -> socket.socket:
    """From 127.0.0.1, or from 127.0.0.`source` where one address has too few ports."""
    if source == 1:
        return socket.create_connection((host, port), 10)
    connection = socket.socket()
    connection.settimeout(10)
    # The port is chosen at the connect: a bind would look for one that is free everywhere.
    connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    connection.bind((f"127.0.0.{source}", 0))
    connection.connect((host, port))
    return connection


def _ask(connection: socket.socket, request: bytes) -> None:
    """One request and its whole answer. Raises HolderFailed, OSError."""
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _more(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.lower().split(b"\r\n")
    if b" 200" not in status:
        raise HolderFailed(f"answered {status.decode('latin-1')}")
    for field in fields:
        name, _, value = field.partition(b":")
        if name == b"content-length":
            while len(body) < int(value):
                body += _more(connection)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise HolderFailed("the server closed a connection")
    return data


if __name__ == "__main__":
    sys.exit(main())
