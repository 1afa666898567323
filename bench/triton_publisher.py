"""Publishes versions of the reload scenario's model to Triton, in a process of its own.

`python -m bench.triton_publisher URL REPOSITORY LAYERS SEED COUNT EVERY_S`: each version is a
folder with a number, then the explicit load that Triton's documentation names for replacing a
served model. It prints each once Triton has answered, and is started as `bench.publisher` is.
"""

from __future__ import annotations

import shutil
import sys
import time
import urllib.request
from pathlib import Path

import torch

from bench.models.reload import Stamped
from bench.publisher import KEEP

MODEL = "reload"


class TritonPublisher:
    """Each version's stamps are its number."""

    def __init__(self, repository: Path, layers: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._home, self._model = repository / MODEL, Stamped(layers)
        numbers = [int(path.name) for path in self._home.iterdir() if path.name.isdecimal()]
        self._version = max(numbers, default=0)

    def write(self) -> int:
        """The next version's folder, whole before it has its name."""
        self._version += 1
        with torch.no_grad():
            self._model.a_first.fill_(self._version)
            self._model.z_last.fill_(self._version)
        fresh = self._home / f".writing-{self._version}"
        fresh.mkdir()
        torch.save(self._model.state_dict(), fresh / "weights.pt")
        shutil.copy(self._home / "model.py", fresh / "model.py")
        fresh.rename(self._home / str(self._version))
        return self._version

    def load(self, url: str) -> None:
        """Returns when Triton has loaded it, and serves it instead of the one before."""
        where = f"{url}/v2/repository/models/{MODEL}/load"
        with urllib.request.urlopen(urllib.request.Request(where, b"{}"), timeout=60) as reply:
            reply.read()
        shutil.rmtree(self._home / str(self._version - KEEP), ignore_errors=True)


def main(url: str, repository: str, layers: str, seed: str, count: str, every_s: str) -> None:
    torch.set_num_threads(1)
    publisher = TritonPublisher(Path(repository), int(layers), int(seed))
    for _ in range(int(count)):
        began = time.monotonic()
        version = publisher.write()
        publisher.load(url)
        print(version, flush=True)
        time.sleep(max(0.0, float(every_s) - (time.monotonic() - began)))


if __name__ == "__main__":
    main(*sys.argv[1:])
