"""The command of each rival, as its documentation has it, and when it is ready."""

from __future__ import annotations

from pathlib import Path

from bench.contenders import Contender
from bench.serving import Server, free_port

HERE = Path(__file__).parent


def mosec(folder: Path, python: Path) -> Contender:
    port = free_port()
    command: list[str | Path] = [
        python,
        HERE / "mosec" / "server.py",
        "--address",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # Its socket's folder has to be new; the default is a random one in the temporary folder.
    command += ["--path", str(folder / "mosec-sockets"), "--log-level", "warning"]
    base = f"http://127.0.0.1:{port}"
    server = Server("mosec", command, log=folder / "mosec.log")

    def ready(server: Server) -> str:
        server.wait_ready(f"{base}/")  # 503 until a worker of every stage is there
        return base

    return Contender("mosec", server, ready, path="/inference")
