"""The loop: step after step, and when to evaluate, commit and stop.

Owns the order of a step (forward, backward, pulse, clip, update) and the decisions that all ranks
take from the same readings. It builds nothing and writes nothing. Invariant: what it commits at
step n depends on the configuration, the seed and n alone, not on how often it was interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from trainer.average import Average
from trainer.commits import Commits
from trainer.committer import Moment
from trainer.config import TrainConfig
from trainer.data import TrainBatches
from trainer.elastic import Stop
from trainer.errors import Diverged
from trainer.evaluate import Evaluator
from trainer.metrics import Reporter, show
from trainer.optim import Optimizer
from trainer.parallel import Parallel
from trainer.partition.balance import Balance
from trainer.pulse import Pulse, Reading
from trainer.resume import Start
from trainer.schedule import factor
from trainer.seeds import derive, seed_torch
from trainer.spikes import Spikes
from trainer.sync import Method


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop drives; `check` sees the first reading, `align` evens out buffers."""

    parallel: Parallel
    sync: Method
    optimizer: Optimizer
    average: Average | None
    batches: TrainBatches
    evaluator: Evaluator
    commits: Commits
    pulse: Pulse
    stop: Stop
    reporter: Reporter
    align: Callable[[], None]
    check: Callable[[Reading], None]
    balance: Balance


@dataclass(frozen=True, slots=True)
class Ending:
    """Where the loop ended. `version` is the last one committed, `stopped` whether it was early."""

    step: int
    position: int
    version: str | None
    evaluation: Mapping[str, float]
    stopped: bool
    seconds: float
    anew: bool = False  # work is divided differently: build the loop again from `version`


class Loop:
    """`rank` is this one's number among those that take different samples."""

    def __init__(self, config: TrainConfig, parts: Parts, device: torch.device, rank: int) -> None:
        self._config, self._device, self._rank = config, device, rank
        self._parts = parts
        self._commits = parts.commits
        self._start = Start()
        self._spikes = Spikes(config.spike.factor, config.spike.window)

    def run(self, start: Start) -> Ending:
        """Trains from `start` to the last step. Raises Diverged or CommitFailed."""
        began, steps = time.monotonic(), self._config.steps
        self._start = start
        step, evaluation, stopped, anew = start.step, dict[str, float](), False, False
        self._parts.parallel.objective.train()
        while step < steps and not stopped and not anew:
            step += 1
            self._step(step)
            commits, evaluates = self._due(step)
            readings = list(self._parts.pulse.readings(all=commits or evaluates))
            self._observe(readings)
            stopped = step < steps and any(reading.stop for reading in readings)
            if commits or evaluates or stopped:
                self._observe(self._parts.pulse.readings(all=True))
                self._parts.align()
                # Who is told to stop may not have the time.
                evaluation = self._evaluate(step) if commits or evaluates else {}
            if commits or stopped:
                self._commits.begin(Moment(step, self._position(step), evaluation))
            self._commits.hear()
            self._parts.balance.after_step()
            if commits and not stopped and step < steps:
                anew = self._parts.balance.at_commit(step)
        self._parts.reporter.flush(position=self._position(step), lr=self._rate(step))
        exchanged = self._parts.sync.exchanged
        self._parts.reporter.event("exchanged", method=self._config.sync.method, bytes=exchanged)
        self._commits.finish()
        version, seconds = self._commits.version, time.monotonic() - began
        return Ending(step, self._position(step), version, evaluation, stopped, seconds, anew)

    def _position(self, step: int) -> int:
        """Samples consumed when `step` is done."""
        return self._start.position + (step - self._start.step) * self._config.data.batch_size

    def _rate(self, step: int) -> float:
        schedule = factor(self._config.schedule, step, self._config.steps)
        return self._config.optimizer.lr * schedule

    def _step(self, step: int) -> None:
        parts = self._parts
        batches = parts.batches.at(self._position(step - 1), self._device)
        last = parts.batches.split.passes - 1

        def prepare(index: int) -> None:
            # Dropout and the like draw what this step draws, whatever was drawn before.
            seed_torch(derive(self._config.seed, "step", step, index, self._rank), self._device)
            parts.sync.before_backward(last=index == last)

        totals = parts.parallel.passes.train(batches, prepare)
        parts.sync.after_backward()
        squares = parts.optimizer.take_gradients()
        norm = parts.pulse.beat(step, squares, totals, parts.stop.asked, self._commits.failed)
        self._clip(norm)
        parts.optimizer.step(step, self._rate(step))
        parts.sync.after_step(step)
        if parts.average is not None:
            parts.average.update(step)

    def _clip(self, norm: torch.Tensor) -> None:
        limit = self._config.optimizer.clip
        # Without waiting for a device: there, one more multiplication is cheaper than a look.
        if limit is not None and (norm.device.type != "cpu" or float(norm) > limit):
            self._parts.optimizer.scale_gradients((limit / (norm + 1e-6)).clamp(max=1.0))

    def _due(self, step: int) -> tuple[bool, bool]:
        """Whether to commit, whether to evaluate."""
        every, evaluate = self._config.checkpoint.every, self._config.evaluate.every
        commits = step == self._config.steps or (every is not None and step % every == 0)
        return commits, evaluate is not None and step % evaluate == 0

    def _observe(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            if not reading.finite:
                self._commits.settle()
                raise Diverged(
                    f"step {reading.step}: the loss is {reading.loss:g}, the gradient's norm "
                    f"{reading.norm:g}; nothing of it was committed. {self._commits.good_version}. "
                    "A lower optimizer.lr, a longer schedule.warmup or optimizer.clip=1.0 may help"
                )
            usual = self._spikes.usual(reading.loss)
            if usual is not None:
                self._commits.settle()
                raise Diverged(
                    f"step {reading.step}: the loss is {reading.loss:.4g}, and was about "
                    f"{usual:.4g} until then; nothing of it was committed. "
                    f"{self._commits.good_version}. A lower optimizer.lr may help; "
                    "spike.factor says what a spike is"
                )
            if reading.failed:
                self._commits.settle()
            self._parts.check(reading)
            position, rate = self._position(reading.step), self._rate(reading.step)
            self._parts.reporter.step(reading, position=position, lr=rate)

    def _evaluate(self, step: int) -> dict[str, float]:
        average = self._parts.average
        with self._parts.sync.agreed(), average.shown() if average else nullcontext():
            evaluation = self._parts.evaluator.run()
        text = f"step {step}  held out: {show(evaluation)}"
        self._parts.reporter.event("evaluation", text, step=step, **evaluation)
        return evaluation
