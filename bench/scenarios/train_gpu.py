"""`train-gpu`: a decoder of a billion parameters on one GPU, and the share of its peak (target 12).

`python -m trainer` in bf16, compiled, beside a plain PyTorch loop that is compiled too. The MFU is
useful arithmetic, counted on the model's own forward and backward, over the dense bf16 peak of the
GPU's data sheet. Commits are what `train` measures: here there is one, after the last step that
counts. Where torch has no CUDA device it is not run, and says so.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from rich.table import Table

from backends.models.decoder import Decoder
from bench.record import Goal, Record
from bench.rivals import chosen
from bench.scenarios import Options, scenario
from bench.scenarios.train import FLOOR, OURS, check, ours, program
from bench.series import MeasureFailed, Series, interleave
from bench.tables import number
from bench.trainers import Task
from trainer.speed import count_flops

MFU = 45.0


@scenario("train-gpu", "a decoder of a billion parameters on one GPU: tokens a second and MFU")
def run(options: Options) -> Record:
    chosen(options.rivals, quick=options.quick, among={})
    if not torch.cuda.is_available():
        raise MeasureFailed("not run: no CUDA device that torch can use")
    task = task_of(options)
    rate = Series("trained", "tokens/s", higher_is_better=True)
    losses: dict[str, float] = {}
    about: dict[str, Any] = {}

    def measure(name: str, repetition: int) -> float:
        with options.console.status(f"{name}, repetition {repetition + 1} ..."):
            folder = options.folder / f"{name}-{repetition}"
            folder.mkdir(parents=True)
            if name == FLOOR:
                found = program(["bench.floors.train_loop", task.dump()])
                about.update(device=found["device"], peak=found["peak"])
            else:
                found = ours(task, folder, None)
        losses[name] = sum(found["losses"][-5:]) / 5
        return task.tokens / float(found["seconds"])

    interleave(rate, [FLOOR, OURS], 1 if options.quick else 3, measure)
    if FLOOR in rate.failures or OURS in rate.failures:
        raise MeasureFailed("; ".join(f"{name}: {why}" for name, why in rate.failures.items()))
    check(losses)
    shares = {n: 100 * mfu(task, rate.median(n) or 0.0, about["peak"]) for n in (OURS, FLOOR)}
    options.console.print(_table(about["device"], rate, shares))
    found, floor = rate.median(OURS), rate.median(FLOOR)
    goals = [Goal.least("MFU", shares[OURS], MFU, "%")]
    if found and floor:
        goals.append(Goal.least("against the plain loop", found / floor, 1.0, "×"))
    return Record(
        scenario="train-gpu",
        metric=rate.metric,
        unit=rate.unit,
        higher_is_better=True,
        seed=options.seed,
        ours=found,
        floor=floor,
        goals=goals,
        detail={
            "task": json.loads(task.dump()),
            "parameters": parameters(task),
            "mfu": shares,
            "last_losses": losses,
            "repetitions": {rate.metric: rate.to_json()},
            **about,
        },
    )


def task_of(options: Options) -> Task:
    return Task(
        layers=18,
        width=2048,
        vocabulary=32768,
        sequences=8,
        length=2048,
        steps=40 if options.quick else 120,
        warm=15,
        seed=options.seed,
        precision="bf16",
        lr=2e-4,
        head=128,
        device="cuda",
        compile=True,
    )


def parameters(task: Task) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(**task.model).parameters())


def mfu(task: Task, tokens_s: float, peak: float) -> float:
    """The share of `peak` that so many tokens a second are worth."""
    with torch.device("meta"):
        model = Decoder(**task.model)
        batch = {"tokens": torch.zeros(task.sequences, task.length, dtype=torch.int64)}
    flops = count_flops(model.loss, batch)
    assert flops is not None, "a decoder's arithmetic does not depend on values"
    return tokens_s * flops / (task.sequences * task.length) / peak


def _table(device: str, rate: Series, shares: dict[str, float]) -> Table:
    table = Table(title=f"one {device}, bf16", title_justify="left")
    for column in ("program", "tokens/s", "MFU"):
        table.add_column(column, justify="left" if column == "program" else "right")
    for name, share in shares.items():
        table.add_row(name, number(rate.median(name) or 0.0), f"{share:.1f} %")
    return table
