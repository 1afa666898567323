"""Publishes versions of the reload scenario's model, one after another, in a process of its own.

`python -m bench.publisher RUN LAYERS SEED COUNT EVERY_S` prints each version once it is published.
It runs at a low priority: a trainer is on other machines, and its work is not what is measured.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from backends.checkpoint import Run, Staging, commit, prune, publish
from bench.models.reload import Stamped

KEEP = 3
NICE = 15


class Publisher:
    """Each version's stamps are its step."""

    def __init__(self, root: Path, layers: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._run, self._layers, self._model = Run(root), layers, Stamped(layers)
        latest = self._run.latest()
        self._step = latest.step if latest is not None else 0

    def publish(self) -> str:
        self._step += 1
        with torch.no_grad():
            self._model.a_first.fill_(self._step)
            self._model.z_last.fill_(self._step)
        tensors = self._model.state_dict()
        staging = Staging(self._run, self._step, attempt="bench", rank=0)
        staging.create()
        manifest = commit(
            staging,
            [staging.write_shard(0, 1, tensors)],
            model={"class": "reload:Stamped", "config": {"layers": self._layers}},
            expected={name: (tuple(t.shape), t.dtype) for name, t in tensors.items()},
            position=self._step,
        )
        publish(self._run, "stable", self._step)
        prune(self._run, keep=KEEP, every_byte=False)
        return manifest.version


def step_back() -> None:
    """Run when nobody else would, even where the benchmark was started at real-time priority."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(NICE)


def main(root: str, layers: str, seed: str, count: str, every_s: str) -> None:
    step_back()
    torch.set_num_threads(1)
    publisher = Publisher(Path(root), int(layers), int(seed))
    for _ in range(int(count)):
        began = time.monotonic()
        print(publisher.publish(), flush=True)
        time.sleep(max(0.0, float(every_s) - (time.monotonic() - began)))


if __name__ == "__main__":
    main(*sys.argv[1:])
