"""wrk, where it is installed: closed-loop load that costs the machine least.

Owns its command line and the reading of its summary. Latencies of wrk are those of a closed loop:
good for one connection, no guide to what users of an overloaded server see.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parent / "wrk.lua"


class WrkFailed(Exception):
    """wrk did not report."""


@dataclass(frozen=True, slots=True)
class Found:
    """What wrk counted; latencies in seconds."""

    requests: int
    seconds: float
    failed: int
    p50: float
    p99: float


def available() -> bool:
    return shutil.which("wrk") is not None


def run(
    url: str, body: bytes, headers: Mapping[str, str], *, connections: int, seconds: int
) -> Found:
    """POST `body` over and over for whole seconds. Raises WrkFailed."""
    with tempfile.NamedTemporaryFile(prefix="bench-body-") as file:
        file.write(body)
        file.flush()
        written = "".join(f"{name}: {value}\n" for name, value in headers.items())
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        done = subprocess.run(
            ["wrk", *options, "-s", str(SCRIPT), url],
            env={**os.environ, "WRK_METHOD": "POST", "WRK_BODY": file.name, "WRK_HEADERS": written},
            capture_output=True,
            text=True,
            timeout=seconds + 30,
        )
    report = [line for line in done.stdout.splitlines() if line.startswith("WRK ")]
    if done.returncode != 0 or not report:
        raise WrkFailed(f"wrk: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
    found = json.loads(report[0].removeprefix("WRK "))
    failed = sum(found[kind] for kind in ("status", "connect", "read", "write", "timeout"))
    return Found(
        requests=found["requests"],
        seconds=found["micros"] / 1e6,
        failed=failed,
        p50=found["p50"] / 1e6,
        p99=found["p99"] / 1e6,
    )
