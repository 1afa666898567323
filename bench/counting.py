"""Instructions of the hot path: bytecode that our files execute for a request, and machine code.

Owns both counters. Bytecode is counted by the interpreter's own trace, by part of the product: the
same on every machine for one version of Python, so that CI can hold it against what is recorded in
`counting.json`. Machine instructions are valgrind's, where that is installed.

    python -m bench.counting           # count, and compare with what is recorded
    python -m bench.counting --write   # record it, after a change that is worth its price
    python -m bench.counting --rounds N  # only run, for counters that watch a process
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from bench.mirror import CONNECTIONS, MirrorLoop, ask_all, worker
from bench.serving import ROOT, python

RECORDED = Path(__file__).with_suffix(".json")
# More than what is recorded by this much fails: in all, or in one part, of which decisions by the
# clock are a larger share. Runs of the same code differ by less than a hundredth.
TOLERANCE, OF_A_PART = 0.03, 0.05
# Caches, learned heads and service times; then the rounds of which the least counts, part by part:
# decisions by the clock add to it only.
WARM, COUNTED = 20, 15
# Valgrind's two runs; the difference is the path's own.
FEW, MORE = 10, 30
_PARTS = {
    "lane": "gateway/lane/",
    "protocol": "gateway/oip/",
    "policy": "gateway/policy/",
    "model": "gateway/",
    "wire": "backends/wire/",
}


def version() -> str:
    return "{}.{}".format(*sys.version_info)


def part_of(file: str) -> str | None:
    """Which part of the product a source file is of; None: none of the hot path's."""
    if not file.startswith(f"{ROOT}/"):
        return None
    path = file.removeprefix(f"{ROOT}/")
    return next((part for part, start in _PARTS.items() if path.startswith(start)), None)


async def _bytecode() -> list[Counter[str]]:
    """Of each counted round, by part."""
    rounds: list[Counter[str]] = []
    found: Counter[str] = Counter()
    parts: dict[str, str | None] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        part = parts[file] if file in parts else parts.setdefault(file, part_of(file))
        if part is None:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False

        def local(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                found[part] += 1
            return local

        return local

    async with worker() as clients:
        for _ in range(WARM):
            await ask_all(clients)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            for _ in range(COUNTED):
                found.clear()
                await ask_all(clients)
                rounds.append(found.copy())
        finally:
            sys.settrace(before)
    return rounds


def bytecode() -> dict[str, float]:
    """Instructions a request, by part, and their sum as `all`."""
    with asyncio.Runner(loop_factory=MirrorLoop) as runner:
        rounds = runner.run(_bytecode())
    MirrorLoop.mirrors.clear()
    found = {part: min(counts[part] for counts in rounds) / CONNECTIONS for part in _PARTS}
    return {**found, "all": sum(found.values())}


def recorded() -> Mapping[str, float] | None:
    """What is recorded for this version of Python."""
    found: dict[str, dict[str, float]] = json.loads(RECORDED.read_text())
    return found.get(version())


def grown(found: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """What takes more than it may; empty: nothing does."""
    return [
        f"{part}: {found[part]:.0f} instructions a request, {before[part]:.0f} are recorded"
        for part in before
        if found[part] > before[part] * (1 + (TOLERANCE if part == "all" else OF_A_PART))
    ]


def machine() -> float | None:
    """Instructions of the processor a request, the stand-ins for client and replica included; None
    without valgrind. Takes most of a minute."""
    if shutil.which("valgrind") is None:
        return None
    few, more = (_collected(rounds) for rounds in (FEW, MORE))
    return (more - few) / (MORE - FEW) / CONNECTIONS


def _collected(rounds: int) -> int:
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command = [*tool, *map(str, python("-m", "bench.counting", "--rounds", str(rounds)))]
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    match = re.search(r"Collected : (\d+)", done.stderr)
    assert match is not None, done.stderr[-2000:]
    return int(match[1])


async def _run(rounds: int) -> None:
    async with worker() as clients:
        for _ in range(WARM + rounds):
            await ask_all(clients)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="record it for this Python")
    parser.add_argument("--rounds", type=int, metavar="N", help="only run")
    args = parser.parse_args()
    if args.rounds is not None:
        with asyncio.Runner(loop_factory=MirrorLoop) as runner:
            runner.run(_run(args.rounds))
        return 0
    found, before = bytecode(), recorded()
    for part, count in found.items():
        was = "" if before is None else f"   recorded {before[part]:.0f}"
        print(f"{part:10} {count:8.0f}{was}")
    if args.write:
        all_of_them = json.loads(RECORDED.read_text())
        all_of_them[version()] = {part: round(count, 1) for part, count in found.items()}
        RECORDED.write_text(json.dumps(all_of_them, indent=2) + "\n")
        return 0
    wrong = [] if before is None else grown(found, before)
    for text in wrong:
        print(text, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
