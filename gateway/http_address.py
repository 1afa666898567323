"""Where an http replica listens, also one that the supervisor runs: its port is chosen at its start
and left in the runtime folder, where the workers read it.

Owns that file's name and form. Invariant: a file that is there holds a whole port number.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from gateway.config import ReplicaConfig

LOCAL = "127.0.0.1"


def address_of(replica: ReplicaConfig, runtime: Path) -> str | None:
    """Its address, None while its process has not been started."""
    if replica.command is None:
        return replica.address
    if "{socket}" in "\n".join(replica.command):
        return f"unix:{_socket(replica, runtime)}"
    port = _noted_port(replica, runtime)
    return None if port is None else f"http://{LOCAL}:{port}"


def command_for(replica: ReplicaConfig, runtime: Path) -> list[str]:
    """The command of its next process, which is told where to listen. A port stays the same from
    one process to the next as long as nobody else has taken it. `{python}` is the one that runs
    the gateway."""
    assert replica.command is not None
    command = [part.replace("{python}", sys.executable) for part in replica.command]
    if "{socket}" in "\n".join(replica.command):
        path = _socket(replica, runtime)
        path.unlink(missing_ok=True)  # left by a killed process; many servers do not do this
        return [part.replace("{socket}", str(path)) for part in command]
    port = _free_port(_noted_port(replica, runtime) or 0)
    noted = _port_file(replica, runtime)
    whole = noted.with_suffix(".new")
    whole.write_text(str(port))
    os.replace(whole, noted)
    return [part.replace("{port}", str(port)) for part in command]


def _socket(replica: ReplicaConfig, runtime: Path) -> Path:
    return runtime / f"{replica.name}.sock"


def _port_file(replica: ReplicaConfig, runtime: Path) -> Path:
    return runtime / f"{replica.name}.port"


def _noted_port(replica: ReplicaConfig, runtime: Path) -> int | None:
    try:
        return int(_port_file(replica, runtime).read_text())
    except (OSError, ValueError):
        return None


def _free_port(wanted: int) -> int:
    """`wanted` if it can be had, else one that the system picks."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCAL, wanted))
        except OSError:
            probe.bind((LOCAL, 0))
        return int(probe.getsockname()[1])
