"""Publishes versions of the stamp model without training it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from backends.checkpoint import Probe, Run, Staging, channel, commit, publish

MODELS = Path(__file__).parent / "models"


def publish_stamp(
    root: Path,
    step: int,
    *,
    to: str = "stable",
    damage: bool = False,
    probe: Probe | None = None,
    **config: float,
) -> str:
    """Commit `step`, whose stamp is the step itself, and point channel `to` at it; the version.
    `damage`: a bit of the weight is flipped between the two. `config` is the model's."""
    version = commit_stamp(root, step, damage=damage, probe=probe, **config)
    publish(Run(root), to, step)
    return version


def commit_stamp(
    root: Path, step: int, *, damage: bool = False, probe: Probe | None = None, **config: float
) -> str:
    run = Run(root)
    staging = Staging(run, step, attempt="t", rank=0)
    staging.create()
    tensors = {"stamp": torch.tensor([float(step)])}
    if size := int(config.get("ballast", 0)):
        tensors["ballast"] = torch.zeros(size)
    manifest = commit(
        staging,
        [staging.write_shard(0, 1, tensors)],
        model={"class": "stamp:Stamp", "config": config},
        expected={name: (tuple(t.shape), torch.float32) for name, t in tensors.items()},
        position=step,
        probe=probe,
    )
    if damage:
        (shard,) = (run.folder(step) / "model").glob("*.safetensors")
        shard.chmod(0o644)
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    return manifest.version


@contextlib.contextmanager
def careless() -> Iterator[None]:
    """A publisher that does not look at what it publishes."""
    verify = channel.verify
    channel.verify = lambda run, step: run.manifest(step)
    try:
        yield
    finally:
        channel.verify = verify


@contextlib.contextmanager
def slow_publisher(root: Path, step: int) -> Iterator[None]:
    """One that keeps the run's lock until the block ends, with the channel moved already: whoever
    reads the channel meanwhile waits where a lease is taken."""
    moved, let_go, write = threading.Event(), threading.Event(), channel._write

    def write_slowly(*arguments: object) -> object:
        record = write(*arguments)
        moved.set()
        assert let_go.wait(60)
        return record

    channel._write = write_slowly
    publisher = threading.Thread(target=publish, args=(Run(root), "stable", step))
    publisher.start()
    try:
        assert moved.wait(60)
        yield
    finally:
        let_go.set()
        publisher.join()
        channel._write = write


def replica_file(
    folder: Path, root: Path, *, file: str = "stamp.replica.toml", **extra: object
) -> Path:
    """A replica's configuration for the run at `root`."""
    lines = {
        "model": "stamp",
        "kind": "tensor",
        "run": str(root),
        "channel": "stable",
        "code": str(MODELS),
        "threads": 1,
        "probation_s": 1.0,  # each version waits for it at one replica
        **extra,
    }
    path = folder / file
    text = "".join(
        f"{key} = {value}\n" if isinstance(value, int | float) else f'{key} = "{value}"\n'
        for key, value in lines.items()
    )
    path.write_text(text)
    return path
