"""`checkpoint`: what a commit costs the training, how fast it is, what it survives (target 11).

Blocked: a real `python -m trainer` run that commits every 100 steps in the background; its own
journal says how long training stood still. Throughput: a commit of one state (hashed, synced, made
visible at once) beside torch.save, DCP and safetensors, all synced to the same disk; the floor is
writing the bytes, the ceiling copying them. Faults: see `bench.faults`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from backends.checkpoint import Run, Staging, commit
from bench import faults
from bench.faults import timed
from bench.record import Goal, Record
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.serving import ROOT, environment, python
from bench.tables import figures_table

OURS, FLOOR, MEMCPY = "penstock", "floor", "memcpy"
RIVALS = ("torch.save", "DCP", "safetensors")
MB = 1e6
WIDTH = 2048
EVERY, BATCH = 100, 128


@scenario("checkpoint", "a commit: training blocked, bytes a second, faults survived")
def run(options: Options) -> Record:
    with options.console.status("training with commits ..."):
        blocked = _blocked(options)
    rate = Series("committed", "MB/s", higher_is_better=True)
    _throughput(options, rate)
    with options.console.status("faults ..."):
        injected = faults.inject(options.folder)
    options.console.print(figures_table("one commit", [OURS, *RIVALS, FLOOR, MEMCPY], [rate]))
    options.console.print(_table(blocked, injected))
    return Record(
        scenario="checkpoint",
        metric=rate.metric,
        unit=rate.unit,
        higher_is_better=True,
        seed=options.seed,
        ours=rate.median(OURS),
        floor=rate.median(FLOOR),
        rivals={name: rate.figure(name) for name in RIVALS},
        goals=[
            Goal.most(f"training blocked, a save in {EVERY} steps", blocked["share"], 1, "%"),
            Goal.most(f"good versions lost in {injected.total} faults", len(injected.lost), 0, ""),
        ],
        detail={
            "blocked": blocked,
            "memcpy_mb_s": rate.median(MEMCPY),
            "faults": injected.kinds,
            "lost": injected.lost,
            "repetitions": {rate.metric: rate.to_json()},
        },
    )


def _blocked(options: Options) -> dict[str, float]:
    """Of a training run: `share` in percent of the time of EVERY steps."""
    steps = 110 if options.quick else 510
    folder = options.folder / "training"
    config = options.folder / "train.toml"
    config.write_text(
        f'run = "{folder}"\nsteps = {steps}\ndevice = "cpu"\nlog_every = 10\n'
        '[model]\nclass = "bench.models.training:Wide"\nconfig = { width = 1024, layers = 4 }\n'
        f'[data]\nclass = "bench.models.training:Noise"\nbatch_size = {BATCH}\n'
        f"[optimizer]\nlr = 1e-4\n[checkpoint]\nevery = {EVERY}\nkeep = 2\n"
    )
    command = [str(part) for part in python("-m", "trainer", config)]
    # The trainer's own number of threads, as a user would have it.
    env = {k: v for k, v in environment().items() if k not in ("OMP_NUM_THREADS",)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the training failed: {done.stderr[-2000:]}")
    journal = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    commits = [line for line in journal if line.get("event") == "commit"]
    rates = [line["samples_per_s"] for line in journal if "samples_per_s" in line]
    # The last commit is waited for; it is no part of the training.
    stalls = [commit["stalled_s"] for commit in commits[:-1]] or [commits[0]["stalled_s"]]
    hundred_s = EVERY * BATCH / statistics.median(rates)
    return {
        "share": 100 * statistics.median(stalls) / hundred_s,
        "stalled_ms": 1e3 * statistics.median(stalls),
        "worst_ms": 1e3 * max(stalls),
        "commit_s": statistics.median(commit["seconds"] for commit in commits),
        "hundred_steps_s": hundred_s,
        "state_mb": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        / MB
        / min(len(commits), 2),
        "commits": len(commits),
    }


def _throughput(options: Options, rate: Series) -> None:
    layers = 8 if options.quick else 24  # 16.8 MB each
    torch.manual_seed(options.seed)
    state = {f"layer{i}.weight": torch.randn(WIDTH, WIDTH) for i in range(layers)}
    size = sum(t.numel() * t.element_size() for t in state.values())
    target = {name: torch.empty_like(t) for name, t in state.items()}
    folder = options.folder / "written"
    ways: dict[str, Callable[[Path], object]] = {
        OURS: lambda place: _commit(place, state),
        "torch.save": lambda place: _synced(place, lambda file: torch.save(state, file)),
        "DCP": lambda place: _save_distributed(place, state),
        "safetensors": lambda place: _synced(place, lambda file: save_file(state, file)),
        FLOOR: lambda place: _synced(place, lambda file: _write(file, state)),
        MEMCPY: lambda _: [target[name].copy_(t) for name, t in state.items()],
    }

    def measure(name: str, repetition: int) -> float:
        place = folder / f"{name}-{repetition}"
        place.mkdir(parents=True)
        try:
            with options.console.status(f"{name}, {size / MB:.0f} MB ..."):
                seconds = timed(lambda: ways[name](place))
        except OSError as error:
            raise MeasureFailed(str(error)) from error
        shutil.rmtree(folder)
        os.sync()  # what one has deleted or left must not slow the next
        return size / MB / seconds

    interleave(rate, list(ways), 3 if options.quick else 7, measure)


def _commit(place: Path, state: dict[str, Tensor]) -> None:
    staging = Staging(Run(place), 1, attempt="bench", rank=0)
    staging.create()
    commit(
        staging,
        [staging.write_shard(0, 1, state)],
        model={"class": "m:M", "config": {}},
        expected={name: (tuple(t.shape), t.dtype) for name, t in state.items()},
        position=1,
    )


def _synced(place: Path, write: Callable[[Path], object]) -> None:
    """Durable, as the others are: the file's bytes and its name."""
    file = place / "state"
    write(file)
    for path in (file, place):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def _write(file: Path, state: dict[str, Tensor]) -> None:
    with file.open("wb", buffering=0) as sink:
        for tensor in state.values():
            tensor.numpy().tofile(sink)


def _save_distributed(place: Path, state: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process
        save_distributed(state, checkpoint_id=place, no_dist=True)


def _table(blocked: dict[str, float], injected: faults.Injected) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("state committed", f"{blocked['state_mb']:.0f} MB")
    table.add_row(f"{EVERY} steps", f"{blocked['hundred_steps_s']:.1f} s")
    table.add_row("training stood still", f"{blocked['stalled_ms']:.1f} ms")
    table.add_row("the commit took", f"{blocked['commit_s']:.2f} s in the background")
    for kind, count in injected.kinds.items():
        lost = sum(text.startswith(kind) for text in injected.lost)
        table.add_row(f"{kind}, injected", f"{count}, lost {lost}")
    return table
