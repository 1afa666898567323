"""What a run reports: metrics.jsonl always, and a person's view on the terminal.

Owns both, on rank 0; the other ranks have a `Reporter` that does nothing. It decides nothing and
reads no tensor. Invariant: every line of metrics.jsonl is one whole JSON object, also after a kill.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TextIO

import orjson

from trainer.pulse import Reading
from trainer.speed import Speed, describe

# How often a log that nobody watches gets a line.
PLAIN_SECONDS = 5.0
# A run that lasts so long can spare the second that the arithmetic's count takes.
MEASURE_AFTER_S = 8.0


class View(Protocol):
    """Where a person looks. `rates` are as `speed.describe` takes them."""

    def progress(
        self, step: int, values: Mapping[str, float], rates: Mapping[str, float]
    ) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class Plain:
    """Short lines, for logs."""

    def __init__(
        self, out: TextIO, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._out, self._steps, self._clock = out, steps, clock
        self._next = clock() + PLAIN_SECONDS
        self._before: tuple[int, float] | None = None

    def progress(self, step: int, values: Mapping[str, float], rates: Mapping[str, float]) -> None:
        now = self._clock()
        if now >= self._next:
            self._next = now + PLAIN_SECONDS
            left = self._left(step, now)
            self.say(f"step {step}/{self._steps}  {show(values)}  {describe(rates)}{left}")

    def _left(self, step: int, now: float) -> str:
        """How long it will go on, by the time since the line before."""
        before, self._before = self._before, (step, now)
        if before is None or step <= before[0] or step >= self._steps:
            return ""
        seconds = (now - before[1]) / (step - before[0]) * (self._steps - step)
        return f"  {timedelta(seconds=round(seconds))} left"

    def say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def close(self) -> None:
        pass


class Live:
    """A progress bar."""

    def __init__(self, out: TextIO, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._console = Console(file=out, highlight=False)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[shown]}"),
            Remaining(compact=True),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=steps, shown="")
        self._progress.start()

    def progress(self, step: int, values: Mapping[str, float], rates: Mapping[str, float]) -> None:
        shown = f"{show(values)}  {describe(rates)}"
        self._progress.update(self._task, completed=step, shown=shown)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def show(values: Mapping[str, float]) -> str:
    """ "loss 0.0841  accuracy 97.8 %" """
    ordered = sorted(values.items(), key=lambda item: item[0] != "loss")
    return "  ".join(
        f"{name} {value:.1%}" if name.endswith("accuracy") else f"{name} {value:.4g}"
        for name, value in ordered
    )


class Journal:
    """Appends lines to metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")  # a kill cut the last line short; it stands alone

    def write(self, event: str, **values: Any) -> None:
        line = {"event": event, "time": round(time.time(), 3), **values}
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        self._file.close()


class Sink(Protocol):
    """Where figures go besides the journal."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Reporter:
    """Takes what the loop says to the journal, the sinks and the view, rates included."""

    def __init__(
        self,
        journal: Journal | None,
        view: View | None,
        *,
        every: int,
        batch_size: int,
        clock: Callable[[], float] = time.monotonic,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self._journal, self._view, self._every = journal, view, every
        self._sinks = tuple(sinks)
        # Set when the run has a model and a device; `measure` is called once, when the run has
        # lasted a while: its first use loads torch's compiler, which short runs need not wait for.
        self.speed = Speed(None, None, None)
        self.measure: Callable[[], Speed] | None = None
        self.memory: Callable[[], int] | None = None
        self._batch, self._clock = batch_size, clock
        self._began = self._since = clock()
        self._readings = list[Reading]()

    def step(self, reading: Reading, *, position: int, lr: float) -> None:
        """Once a step; every so many become one line, their loss and metrics averaged."""
        if self._journal is None:
            return
        self._readings.append(reading)
        if reading.step % self._every == 0:
            self.flush(position=position, lr=lr)

    def flush(self, *, position: int, lr: float) -> None:
        if self._journal is None or not self._readings:
            return
        now, count = self._clock(), len(self._readings)
        rates = self.speed.rates(count * self._batch / max(now - self._since, 1e-9))
        if self.memory is not None:
            rates["memory_bytes"] = self.memory()
        last = self._readings[-1]
        values = {"loss": sum(r.loss for r in self._readings) / count}
        for name in last.metrics:
            values[name] = sum(r.metrics[name] for r in self._readings) / count
        figures = {**values, "grad_norm": last.norm, "lr": lr, **rates}
        self._journal.write("step", step=last.step, position=position, **figures)
        for sink in self._sinks:
            sink.scalars(last.step, figures)
        if self._view is not None:
            self._view.progress(last.step, values, rates)
        self._since, self._readings = now, []
        if self.measure is not None and now - self._began > MEASURE_AFTER_S:
            self.speed, self.measure = self.measure(), None
            self._since = self._clock()

    def event(self, event: str, text: str = "", **values: Any) -> None:
        """A line in the journal and, with a text, one for people."""
        if self._journal is not None:
            self._journal.write(event, **values)
        if event == "evaluation":
            found = {f"held_out/{name}": v for name, v in values.items() if name != "step"}
            for sink in self._sinks:
                sink.scalars(int(values["step"]), found)
        if self._view is not None and text:
            self._view.say(text)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
        if self._view is not None:
            self._view.close()
        if self._journal is not None:
            self._journal.close()
