"""`train`: tokens a second of a training (target 12), beside a plain loop and Hugging Face Trainer.

One rank, the same decoder, data, optimizer and precision in each; ours is `python -m trainer` with
everything on that a run has: clipping, journal, evaluation, a commit in the background. The first
steps are left out, as each program spends them on set-up. The floor is the plain PyTorch loop.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.record import Goal, Record
from bench.rivals import TRAINERS, chosen
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed, Series, interleave
from bench.serving import ROOT, environment, python
from bench.tables import figures_table
from bench.trainers import Task

OURS, FLOOR = "penstock", "floor"
# Within it all programs must have learnt alike: the same sum, added up in other orders, and first
# weights that differ.
LOSS_TOLERANCE = 0.15
PATIENCE_S = 600
# As often as in the scenario `checkpoint`, or once where there are fewer steps.
COMMIT_EVERY = 100


@scenario("train", "tokens a second of a training, beside a plain loop and Hugging Face Trainer")
def run(options: Options) -> Record:
    rate = Series("trained", "tokens/s", higher_is_better=True)
    task = _task(options)
    losses: dict[str, float] = {}
    versions: dict[str, str] = {}
    rivals = chosen(options.rivals, quick=options.quick, among=TRAINERS)

    def measure(name: str, repetition: int) -> float:
        with options.console.status(f"{name}, repetition {repetition + 1} ..."):
            folder = options.folder / f"{name}-{repetition}"
            folder.mkdir(parents=True)
            if name == OURS:
                found = ours(task, folder, COMMIT_EVERY)
            elif name == FLOOR:
                found = program(["bench.floors.train_loop", task.dump()])
            else:
                rival = TRAINERS[name]
                if reason := rival.missing:
                    raise MeasureFailed(reason)
                versions[rival.package] = rival.version()
                module = ["bench.trainers.hugging_face", task.dump(), str(folder)]
                found = program(module, rival.env)
        losses[name] = sum(found["losses"][-5:]) / 5
        return task.tokens / float(found["seconds"])

    names = [FLOOR, OURS, *rivals]
    interleave(rate, names, 2 if options.quick else 5, measure)
    options.console.print(figures_table("one training", names, [rate]))
    for name, reason in rate.failures.items():
        options.console.print(f"{name}: {reason}", style="yellow", markup=False)
    check(losses)
    found, floor = rate.median(OURS), rate.median(FLOOR)
    goals = []
    if found and floor:
        goals.append(Goal.least("against the plain loop", found / floor, 1.0, "×"))
    return Record(
        scenario="train",
        metric=rate.metric,
        unit=rate.unit,
        higher_is_better=True,
        seed=options.seed,
        ours=found,
        floor=floor,
        rivals={name: rate.figure(name) for name in rivals},
        goals=goals,
        detail={
            "task": json.loads(task.dump()),
            "last_losses": losses,
            "repetitions": {rate.metric: rate.to_json()},
        },
        versions=versions,
    )


def _task(options: Options) -> Task:
    if options.quick:
        size: dict[str, Any] = {
            "layers": 2,
            "width": 128,
            "vocabulary": 1024,
            "length": 64,
            "steps": 200,
        }
    else:
        size = {"layers": 4, "width": 256, "vocabulary": 4096, "length": 128, "steps": 220}
    return Task(sequences=8, warm=10, seed=options.seed, **size)


def check(losses: dict[str, float]) -> None:
    """Raises MeasureFailed when a program did not do the same work."""
    floor = losses.get(FLOOR)
    for name, loss in losses.items():
        if floor is not None and abs(loss - floor) > LOSS_TOLERANCE * floor:
            raise MeasureFailed(
                f"{name} ends with a loss of {loss:.3f}, the floor with {floor:.3f}"
            )


def ours(task: Task, folder: Path, commits: int | None) -> dict[str, Any]:
    """`python -m trainer` with a commit after every `commits` steps, and at its end."""
    every = "" if commits is None else f"every = {min(commits, task.steps - 20)}"
    config = folder / "train.toml"
    model = "\n".join(f"{key} = {json.dumps(value)}" for key, value in task.model.items())
    config.write_text(
        f"""
run = "{folder / "run"}"
seed = {task.seed}
steps = {task.steps}
log_every = 1
device = "{task.device}"
deterministic = {str(task.device == "cpu").lower()}

[model]
class = "backends.models.decoder:Decoder"

[model.config]
{model}

[data]
class = "bench.trainers.data:Sequences"
batch_size = {task.sequences}

[data.config]
count = {task.steps * task.sequences}
length = {task.length}
vocabulary = {task.vocabulary}
seed = {task.seed}

[optimizer]
lr = {task.lr}
weight_decay = {task.weight_decay}
clip = {task.clip}

[compute]
precision = "{task.precision}"
compile = {str(task.compile).lower()}

[checkpoint]
{every}
"""
    )
    _run(python("-m", "trainer", config), {})
    journal = (folder / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in journal.splitlines()]
    steps = {line["step"]: line for line in lines if line["event"] == "step"}
    seconds = steps[task.steps]["time"] - steps[task.warm]["time"]
    return {"seconds": seconds, "losses": [steps[step]["loss"] for step in sorted(steps)]}


def program(module: list[str], env: Mapping[str, str] | None = None) -> dict[str, Any]:
    said = _run(python("-m", *module), dict(env or {}))
    found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return found


def _run(command: list[Any], env: dict[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**environment(), **_threads(), **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureFailed(f"it took more than {PATIENCE_S} s") from error
    if done.returncode != 0:
        raise MeasureFailed(f"exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _threads() -> dict[str, str]:
    """The same number for each program, whatever its own default is."""
    count = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    return {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
