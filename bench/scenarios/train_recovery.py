"""`train-recovery`: a rank is killed with SIGKILL, again and again; how soon training goes on.

Two ranks share a decoder (FSDP2) under `python -m trainer launch`. Timed from the kill, and from
when the new ranks' processes exist, to the end of the first new step; in between Python and torch
start, the ranks meet, and the newest checkpoint is verified and loaded. Checked: every attempt goes
on from the newest commit, and a step that is trained twice has the same loss to the last digit.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.record import Goal, Record
from bench.rivals import chosen
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series
from bench.serving import ROOT, environment, python

OURS = "penstock"
RANKS = 2
EVERY = 20  # steps between commits
WITHIN_S = 3.0
PATIENCE_S = 120.0
LOOK_S = 0.005
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from a kill: until the new ranks' processes were there, until they had met and knew
    where to go on, until the first step was done. `lost` steps were trained again."""

    processes_s: float
    met_s: float
    step_s: float
    lost: int

    @property
    def restarted_s(self) -> float:
        """From the restart of the ranks to the first step."""
        return self.step_s - self.processes_s


@scenario("train-recovery", "a rank is killed: seconds until the first step after the restart")
def run(options: Options) -> Record:
    chosen(options.rivals, quick=options.quick, among={})
    kills = 4 if options.quick else 12
    with (options.folder / "launch.log").open("wb") as log:
        training = Training(options.folder, options.seed, kills, log.fileno())
        try:
            found = []
            for index in range(kills):
                with options.console.status(f"kill {index + 1} of {kills} ..."):
                    found.append(training.kill_one())
            training.stop()
        finally:
            training.close()
    wrong = differing(training.journal())
    series = [
        Series("from the restart to the first new step", "s", False),
        Series("from the kill to it", "s", False),
    ]
    for one in found:
        series[0].values.setdefault(OURS, []).append(one.restarted_s)
        series[1].values.setdefault(OURS, []).append(one.step_s)
    median = series[0].median(OURS) or math.inf
    options.console.print(_table(found))
    return Record(
        scenario="train-recovery",
        metric=series[0].metric,
        unit="s",
        higher_is_better=False,
        seed=options.seed,
        ours=median,
        goals=[
            Goal.most(series[0].metric, median, WITHIN_S, "s"),
            Goal.most("steps that came out otherwise the second time", len(wrong), 0, ""),
        ],
        detail={
            "kills": kills,
            "ranks": RANKS,
            "worst_s": max(one.restarted_s for one in found),
            "recoveries": [
                {
                    "processes_s": one.processes_s,
                    "met_s": one.met_s,
                    "step_s": one.step_s,
                    "lost": one.lost,
                }
                for one in found
            ],
            "repetitions": {one.metric: one.to_json() for one in series},
        },
    )


class Training:
    """The launcher, its ranks and the run's journal. Raises MeasureFailed."""

    def __init__(self, folder: Path, seed: int, restarts: int, log: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._config(seed)
        launch = ["-m", "trainer", "launch", "--ranks", str(RANKS), "--restarts", str(restarts)]
        self._process = subprocess.Popen(
            python(*launch, folder / "train.toml"),
            cwd=ROOT,
            env={**environment(), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
            stdout=log,
            stderr=log,
        )

    def kill_one(self) -> Recovery:
        """When the newest attempt has committed and is some steps further."""
        further = self._random.randint(1, EVERY - 1)
        self._wait("a commit", lambda: self._well_on(further))
        ranks = self._ranks()
        starts = len(of(self.journal(), "start"))
        killed = time.time()
        os.kill(self._random.choice(ranks), signal.SIGKILL)
        self._wait("new steps", lambda: bool(self._steps_after(starts)))
        before, after = self.journal_until(starts)
        newest = of(before, "commit")[-1]["step"]
        if after[0]["step"] != newest:
            raise MeasureFailed(f"it went on from {after[0]['step']}, and {newest} was committed")
        born = max(birth(pid) for pid in self._ranks())
        step = of(after, "step")[0]["time"]
        lost = of(before, "step")[-1]["step"] - newest
        return Recovery(born - killed, after[0]["time"] - killed, step - killed, lost)

    def stop(self) -> None:
        """As a scheduler would: it commits where it is."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(PATIENCE_S)
        stops = of(self.journal(), "stop")
        if not stops:
            raise MeasureFailed("told to stop, it committed nothing")

    def close(self) -> None:
        self._process.kill()
        for pid in self._ranks():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def journal(self) -> list[Line]:
        path = self._folder / "run" / "metrics.jsonl"
        found = []
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):  # a kill cut it short, or it is being written
                found.append(json.loads(line))
        return found

    def journal_until(self, starts: int) -> tuple[list[Line], list[Line]]:
        """What the first so many attempts wrote, and what those after them did."""
        lines = self.journal()
        at = [i for i, line in enumerate(lines) if line["event"] == "start"][starts]
        return lines[:at], lines[at:]

    def _steps_after(self, starts: int) -> list[Line]:
        lines = self.journal()
        if len(of(lines, "start")) <= starts:
            return []
        return of(self.journal_until(starts)[1], "step")

    def _well_on(self, further: int) -> bool:
        lines = self.journal()
        starts, steps = of(lines, "start"), of(lines, "step")
        commits = [line["step"] for line in of(lines, "commit")]
        if not starts or not steps or not commits or len(self._ranks()) < RANKS:
            return False
        newest = max(commits)
        return bool(newest > starts[-1]["step"] and steps[-1]["step"] >= newest + further)

    def _wait(self, what: str, there: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not there():
            if self._process.poll() is not None or time.monotonic() > until:
                said = (self._folder / "launch.log").read_text()[-600:]
                raise MeasureFailed(f"no {what} within {PATIENCE_S:.0f} s: {said}")
            time.sleep(LOOK_S)

    def _ranks(self) -> list[int]:
        return [pid for pid in children(self._process.pid) if variable(pid, "RANK") is not None]

    def _config(self, seed: int) -> None:
        (self._folder / "train.toml").write_text(
            f"""
run = "{self._folder / "run"}"
seed = {seed}
steps = 1000000
log_every = 1
device = "cpu"

[model]
class = "backends.models.decoder:Decoder"

[model.config]
model_type = "llama"
vocab_size = 4096
hidden_size = 256
intermediate_size = 768
num_hidden_layers = 4
num_attention_heads = 4
tie_word_embeddings = true

[data]
class = "bench.trainers.data:Sequences"
batch_size = 4

[data.config]
count = 2000
length = 32
vocabulary = 4096
seed = {seed}

[optimizer]
lr = 1e-3
clip = 1.0

[checkpoint]
every = {EVERY}
"""
        )


def of(lines: list[Line], event: str) -> list[Line]:
    return [line for line in lines if line["event"] == event]


def differing(lines: list[Line]) -> list[int]:
    """Steps that were trained more than once, and not with the same loss."""
    seen: dict[int, float] = {}
    return [
        s["step"] for s in of(lines, "step") if seen.setdefault(s["step"], s["loss"]) != s["loss"]
    ]


def children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))) and int(fields[1]) == parent:
            yield int(entry.name)


def stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on; nothing of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def birth(pid: int) -> float:
    """When the process began, as time.time() counts; to a hundredth."""
    fields = stat(pid)
    if not fields:
        raise MeasureFailed("a rank that had just trained a step is gone")
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def variable(pid: int, name: str) -> str | None:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    found = (part.partition(b"=") for part in content.split(b"\0"))
    return next((value.decode() for key, _, value in found if key == name.encode()), None)


def _table(found: list[Recovery]) -> Table:
    table = Table(title="seconds from the kill", title_justify="left")
    heads = ("kill", "new processes", "ranks met", "first step", "from the restart", "steps again")
    for head in heads:
        table.add_column(head, justify="right")
    for index, one in enumerate(found, 1):
        times = (one.processes_s, one.met_s, one.step_s, one.restarted_s)
        table.add_row(str(index), *(f"{seconds:.2f}" for seconds in times), str(one.lost))
    return table
