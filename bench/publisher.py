"""Publishes versions of the reload scenarios' models, one after another, in a process of its own.

`python -m bench.publisher RUN WHAT SEED COUNT EVERY_S` prints each version once it is published;
with EVERY_S `asked`, it publishes one for each line that it reads.
WHAT is a number, of the layers of `bench.models.reload`, or `text`, for `bench.models.speaker`.
Start it behind `STEP_BACK`: a trainer is on other machines, and its work is not what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from backends.checkpoint import Probe, Run, Staging, commit, prune, publish
from bench.models import speaker
from bench.models.reload import Stamped

TEXT = "text"
ASKED = "asked"
KEEP = 3
# Run when nobody else would, even where the benchmark was started at real-time priority.
STEP_BACK = ("chrt", "--other", "0", "nice", "-n", "10")


class Kind(Protocol):
    """What is published: whose model, with which files beside the weights."""

    @property
    def model(self) -> Mapping[str, Any]: ...
    @property
    def files(self) -> Mapping[str, bytes]: ...
    def weights(self, step: int) -> Mapping[str, Tensor]: ...
    def probe(self, step: int) -> Probe: ...


class Tensors:
    """Each version's stamps are its step."""

    def __init__(self, layers: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._net = Stamped(layers).requires_grad_(False)
        self.model = {"class": "reload:Stamped", "config": {"layers": layers}}
        self.files: Mapping[str, bytes] = {}

    def weights(self, step: int) -> Mapping[str, Tensor]:
        self._net.a_first.fill_(step)
        self._net.z_last.fill_(step)
        return self._net.state_dict()

    def probe(self, step: int) -> Probe:
        """Of the weights that were made last."""
        x = torch.ones(1, 8)
        y = self._net.infer(x)["y"]
        return Probe(inputs={"x": x.tolist()}, outputs={"y": y.tolist()})


class Texts:
    """Each version's tokens name its step."""

    def __init__(self, seed: int) -> None:
        self._made = speaker.tensors(seed)
        self.model = {"class": "backends.models.decoder:Decoder", "config": dict(speaker.CONFIG)}
        self.files = speaker.files()

    def weights(self, step: int) -> Mapping[str, Tensor]:
        speaker.stamp(self._made, step)
        return self._made

    def probe(self, step: int) -> Probe:
        prompt, tokens = speaker.probe_of(step)
        return Probe(inputs={"prompt": prompt}, outputs={"tokens": tokens})


class Publisher:
    """Goes on after the run's newest step."""

    def __init__(self, root: Path, kind: Kind) -> None:
        self._run, self._kind = Run(root), kind
        latest = self._run.latest()
        self._step = latest.step if latest is not None else 0

    def publish(self) -> str:
        self._step += 1
        step, kind = self._step, self._kind
        tensors = kind.weights(step)
        staging = Staging(self._run, step, attempt="bench", rank=0)
        staging.create()
        parts = [staging.write_shard(0, 1, tensors)]
        parts += [staging.write_file(f"model/{name}", data) for name, data in kind.files.items()]
        manifest = commit(
            staging,
            parts,
            ranks=1,
            model=kind.model,
            expected={name: (tuple(t.shape), t.dtype) for name, t in tensors.items()},
            position=step,
            probe=kind.probe(step),
        )
        publish(self._run, "stable", step)
        prune(self._run, keep=KEEP, every_byte=False)
        return manifest.version


def kind_of(what: str, seed: int) -> Kind:
    if what == TEXT:
        return Texts(seed)
    return Tensors(int(what), seed)


def main(root: str, what: str, seed: str, count: str, every_s: str) -> None:
    torch.set_num_threads(1)
    publisher = Publisher(Path(root), kind_of(what, int(seed)))
    for _ in range(int(count)):
        began = time.monotonic()
        if every_s == ASKED and not sys.stdin.readline():
            break
        print(publisher.publish(), flush=True)
        if every_s != ASKED:
            time.sleep(max(0.0, float(every_s) - (time.monotonic() - began)))


if __name__ == "__main__":
    main(*sys.argv[1:])
