"""Real processes for end-to-end tests: a published run, a gateway with its replicas, traffic.

Everything listens on ports and sockets that the system picks, and everything started is stopped.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what: str, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Polls, for there is no event to wait on across processes; fails loudly, never hangs."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return json.loads(reply.read())


def reachable(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True


class GatewayProcess:
    """`python -m gateway serve FILE` with its own ports; `log` is what it printed."""

    def __init__(self, folder: Path, config: str, env: dict[str, str] | None = None) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        server = (
            f'[server]\nlisten = "127.0.0.1:{self.port}"\nadmin = "127.0.0.1:{self.admin_port}"\n'
        )
        self.config = folder / "serve.toml"
        self.config.write_text(server + config)
        self._log = folder / "gateway.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", str(self.config)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> None:
        try:
            wait_until("readiness", lambda: self._alive() and reachable(f"{self.url}/readyz"))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def _alive(self) -> bool:
        assert self.process.poll() is None, f"the gateway exited:\n{self.log}"
        return True

    def status(self) -> dict[str, Any]:
        return get_json(f"{self.admin}/status")

    def replicas(self, model: int = 0) -> list[dict[str, Any]]:
        return self.status()["models"][model]["replicas"]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)
