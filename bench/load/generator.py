"""Runs a load in processes of its own and puts their reports together.

Owns those processes. Ctrl-C ends a load early, with a report of what was found until then; a
second one gives that up. Invariant: none of the processes outlives `run`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from bench.load.spec import LoadReport, LoadSpec
from bench.serving import ROOT

Progress = Callable[[dict[str, Any]], None]
# Beyond the spec's own time: starting Python, opening connections.
MARGIN_S = 60.0


# Within which a load that was told to stop reports.
STOP_S = 10.0


class LoadFailed(Exception):
    """The load could not be put on; the message says why."""


def run(spec: LoadSpec, *, processes: int = 1, progress: Progress | None = None) -> LoadReport:
    """Blocks until the load ended. `progress` is called from other threads. Raises LoadFailed;
    KeyboardInterrupt where that came before there was anything to report."""
    parts = [_Part(spec.share(index, processes), progress) for index in range(processes)]
    limit = spec.warmup_s + spec.seconds + spec.timeout_s + MARGIN_S
    try:
        for part in parts:
            part.start()
        try:
            return _total([part.result(limit) for part in parts])
        except KeyboardInterrupt:
            for part in parts:
                part.stop()
            try:
                return _total([part.result(STOP_S) for part in parts])
            except LoadFailed as error:
                raise KeyboardInterrupt from error
    finally:
        for part in parts:
            part.close()


def _total(reports: list[LoadReport]) -> LoadReport:
    total = LoadReport()
    for report in reports:
        total.add(report)
    return total


class _Part:
    """One process of the load."""

    def __init__(self, spec: LoadSpec, progress: Progress | None) -> None:
        self._asked = json.dumps({"spec": spec.to_json(), "progress": progress is not None})
        self._progress = progress
        self._answer: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A terminal's Ctrl-C is for whoever asked: `run` passes it on.
            process_group=0,
        )
        # Not the thread's own end: a `join` that Ctrl-C interrupts takes the thread for ended.
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, name="load-reader", daemon=True)

    def start(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(self._asked)
        self._process.stdin.close()
        self._reader.start()

    def stop(self) -> None:
        self._process.terminate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            message = json.loads(text)
            if "progress" in message and self._progress is not None:
                self._progress(message["progress"])
            else:
                self._answer = message
        self._ended.set()

    def result(self, seconds: float) -> LoadReport:
        if not self._ended.wait(seconds):
            raise LoadFailed(f"the generator did not end within {seconds:.0f} s")
        if "report" in self._answer:
            return LoadReport.from_json(self._answer["report"])
        assert self._process.stderr is not None
        said = self._answer.get("error") or self._process.stderr.read().strip()
        raise LoadFailed(said or f"the generator ended with status {self._process.wait()}")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
