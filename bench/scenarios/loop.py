"""`loop`: ten minutes of the product: it trains and publishes, and what can go wrong does.

A trainer publishes every few seconds; two replicas follow; requests arrive at intended times. On
the way, checkpoints with NaN and with a flipped bit are published, and replicas and the trainer
are killed with SIGKILL. Counted: every request, by what became of it and by the version that
answered. Wanted: nothing failed, and no answer is of a bad version.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiohttp
import numpy as np
from rich.table import Table

from backends.checkpoint import Run, Staging, commit, publish, read_channel, read_tensors
from bench.contenders import penstock_listens
from bench.record import Goal, Record
from bench.scenarios import Options, scenario
from bench.serving import ROOT, Server, environment, python

DIGITS = ROOT / "examples" / "digits"
REPLICAS = 2
RATE = 100.0
# Steps between commits, and between versions that are published.
COMMIT, PUBLISH = 500, 1000
# A bad version gets a step of its own beside the trainer's.
BESIDE = 1


@dataclass(slots=True)
class Told:
    """What became of the requests, and what was done to the system."""

    sent: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0
    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter[str])
    bad: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter[str])


@scenario("loop", "train, publish, reload, fail for ten minutes under load: nothing is lost")
def run(options: Options) -> Record:
    seconds, every_s = (40.0, 7.0) if options.quick else (600.0, 20.0)
    story = Story(options)
    story.train_first()
    server = Server("penstock", story.serve(), log=options.folder / "gateway.log")
    with server:
        clients, admin = penstock_listens(server)
        server.wait("both replicas", lambda: _all_ready(admin), 120)
        url = f"{clients}/v2/models/digits/infer"
        with options.console.status(f"{seconds:.0f} s of training, publishing and failing ..."):
            told = asyncio.run(story.tell(url, admin, seconds, every_s))
        counters = _status(admin)["counters"]
    return _record(options, story, told, counters)


class Story:
    """One run's folder, its trainer, and what is done to them."""

    def __init__(self, options: Options) -> None:
        self._folder = options.folder
        self.run = Run(options.folder / "run")
        self._rng = random.Random(options.seed)
        self._trainer: subprocess.Popen[bytes] | None = None

    def serve(self) -> list[str | Path]:
        (self._folder / "digits.replica.toml").write_text(
            f'model = "digits"\nrun = "{self.run.root}"\nchannel = "stable"\ncode = "{DIGITS}"\n'
            'device = "cpu"\nthreads = 1\npoll_s = 0.05\nprobation_s = 0.5\n'
        )
        config = self._folder / "serve.toml"
        config.write_text(
            '[server]\nlisten = "127.0.0.1:0"\nadmin = "127.0.0.1:0"\n'
            '[[models]]\nname = "digits"\n[[models.replicas]]\nname = "digits"\n'
            f'count = {REPLICAS}\nspawn = "digits.replica.toml"\n'
        )
        return python("-m", "gateway", "serve", config)

    def train_first(self) -> None:
        self._start_trainer(PUBLISH)
        assert self._trainer is not None
        if self._trainer.wait():
            raise RuntimeError(f"the first training failed; see {self._folder / 'trainer.log'}")

    async def tell(self, url: str, admin: str, seconds: float, every_s: float) -> Told:
        told, end = Told(), time.monotonic() + seconds
        faults: Mapping[str, Callable[[], str | None]] = {
            "NaN published": lambda: self._publish_bad(poison=True),
            "replica killed": lambda: self._kill_replica(admin),
            "bit flipped after publishing": lambda: self._publish_bad(poison=False),
            "trainer killed": self._kill_trainer,
        }
        self._start_trainer(10**9)
        try:
            load = asyncio.create_task(_load(url, told, seconds))
            for name in itertools.cycle(faults):
                await asyncio.wait([load], timeout=every_s)
                if load.done() or time.monotonic() > end - every_s:
                    break
                bad = await asyncio.to_thread(faults[name])
                told.done[name] += 1
                if bad is not None:
                    told.bad.append(bad)
            await load
        finally:
            self._stop_trainer(signal.SIGTERM)
        return told

    # ------------------------------------------------------------------------------ what is done

    def _start_trainer(self, steps: int) -> None:
        overrides = [
            f"run={self.run.root}",
            f"steps={steps}",
            f"checkpoint.every={COMMIT}",
            f"publish.every={PUBLISH}",
            "schedule.name=constant",
            "schedule.warmup=0",
            "optimizer.lr=1e-4",
        ]
        # At a low priority: a trainer is on other machines, and its work is not what is measured.
        command = python("-m", "trainer", DIGITS / "train.toml", *overrides)
        with (self._folder / "trainer.log").open("ab") as log:
            self._trainer = subprocess.Popen(
                ["nice", "-n", "15", *map(str, command)],
                cwd=ROOT,
                env=environment(),
                stdout=log,
                stderr=log,
            )

    def _stop_trainer(self, number: int) -> None:
        if self._trainer is not None:
            self._trainer.send_signal(number)
            self._trainer.wait()

    def _kill_trainer(self) -> None:
        self._stop_trainer(signal.SIGKILL)
        self._start_trainer(10**9)

    def _kill_replica(self, admin: str) -> None:
        replicas = [r for r in _status(admin)["replicas"] if r["state"] == "ready"]
        if replicas:
            os.kill(self._rng.choice(replicas)["pid"], signal.SIGKILL)

    def _publish_bad(self, *, poison: bool) -> str:
        """The newest version again, with a NaN in it or a bit of its file flipped; its name."""
        channel = read_channel(self.run, "stable")
        assert channel is not None
        source = self.run.manifest(channel.step)
        tensors = dict(read_tensors(self.run.folder(channel.step), source))
        step = channel.step + BESIDE
        name = "head.bias"
        tensors[name] = tensors[name].clone()
        tensors[name].fill_(float("nan")) if poison else tensors[name].add_(1e-3)
        staging = Staging(self.run, step, f"bad{self._rng.getrandbits(32):x}", rank=0)
        staging.create()
        manifest = commit(
            staging,
            [staging.write_shard(0, 1, tensors)],
            model=dict(source.model),
            expected={key: (tuple(t.shape), t.dtype) for key, t in tensors.items()},
            position=source.position,
            evaluation=dict(source.evaluation),
        )
        publish(self.run, "stable", step)
        if not poison:
            _flip(self.run.folder(step) / "model" / "model-00001-of-00001.safetensors")
        return manifest.version


def _flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


async def _load(url: str, told: Told, seconds: float) -> None:
    """An open loop of held-out digits."""
    import sys

    sys.path.insert(0, str(DIGITS))
    from data import DigitsData

    held_out = DigitsData().held_out()
    images = [image.numpy().astype("<f4").tobytes() for image in held_out["image"]]
    digits = held_out["digit"].tolist()
    headers = {"inference-header-content-length": "0"}
    loop = asyncio.get_running_loop()

    async def one(session: aiohttp.ClientSession, index: int, intended: float) -> None:
        try:
            async with session.post(url, data=images[index], headers=headers) as reply:
                data = await reply.read()
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status} {data[:200]!r}")
        except Exception as error:
            told.failed.append(repr(error))
            return
        told.seconds.append(loop.time() - intended)
        told.versions[reply.headers["x-model-version"]] += 1
        told.wrong += int.from_bytes(data[-8:], "little") != digits[index]

    timeout, connector = aiohttp.ClientTimeout(total=60), aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        due = loop.time()
        end = due + seconds
        while due < end:
            group.create_task(one(session, told.sent % len(images), due))
            told.sent += 1
            due += 1 / RATE
            await asyncio.sleep(max(0.0, due - loop.time()))


def _status(admin: str) -> dict[str, Any]:
    with urlopen(f"{admin}/status", timeout=10) as reply:
        model: dict[str, Any] = json.load(reply)["models"][0]
    return model


def _all_ready(admin: str) -> bool:
    return all(replica["state"] == "ready" for replica in _status(admin)["replicas"])


def _record(options: Options, story: Story, told: Told, counters: Mapping[str, int]) -> Record:
    answered = sum(told.versions.values())
    bad = sum(told.versions[version] for version in told.bad)
    unaccounted = told.sent - answered - len(told.failed)
    balance = (
        counters["accepted"] - counters["done"] - counters["failed"] - counters["cancelled"]
    ) - counters["live"]
    channel = read_channel(story.run, "stable")
    generations = channel.generation if channel is not None else 0
    table = Table(title="what was done", title_justify="left", box=None, header_style="dim")
    table.add_column("event")
    table.add_column("times", justify="right")
    table.add_row("version published", str(generations))
    for name, times in sorted(told.done.items()):
        table.add_row(name, str(times))
    options.console.print(table)
    p50, p99 = np.percentile(told.seconds, [50, 99]) * 1e3
    accuracy = 1 - told.wrong / max(answered, 1)
    return Record(
        scenario="loop",
        metric="requests that failed",
        unit="",
        higher_is_better=False,
        seed=options.seed,
        ours=float(len(told.failed)),
        goals=[
            Goal.most("failed requests", len(told.failed), 0, ""),
            Goal.most("requests unaccounted for", abs(unaccounted) + abs(balance), 0, ""),
            Goal.most("answers of bad versions", bad, 0, ""),
            Goal.least("versions that answered", len(told.versions), 3, ""),
            Goal.least("accuracy of all answers", accuracy, 0.95, ""),
        ],
        detail={
            "sent": told.sent,
            "answered": answered,
            "failed": len(told.failed),
            "errors": sorted(set(told.failed))[:5],
            "versions_answered": len(told.versions),
            "generations": generations,
            "faults": dict(told.done),
            "bad_versions": told.bad,
            "accuracy": accuracy,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "max_ms": max(told.seconds) * 1e3,
            "rate": RATE,
        },
    )
