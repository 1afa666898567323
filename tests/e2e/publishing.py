"""Publishes versions of the stamp model without training it."""

from __future__ import annotations

from pathlib import Path

import torch

from backends.checkpoint import Run, Staging, commit, publish

MODELS = Path(__file__).parent / "models"


def publish_stamp(root: Path, step: int, *, damage: bool = False) -> str:
    """Commit `step`, whose weight is the step itself, and point `stable` at it; the version.
    `damage`: a bit of the weight is flipped between the two."""
    run = Run(root)
    staging = Staging(run, step, attempt="t", rank=0)
    staging.create()
    part = staging.write_shard(0, 1, {"stamp": torch.tensor([float(step)])})
    manifest = commit(
        staging,
        [part],
        model={"class": "stamp:Stamp", "config": {}},
        expected={"stamp": ((1,), torch.float32)},
        position=step,
    )
    if damage:
        (shard,) = (run.folder(step) / "model").glob("*.safetensors")
        shard.chmod(0o644)
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    publish(run, "stable", step)
    return manifest.version


def replica_file(folder: Path, root: Path, **extra: object) -> Path:
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
    path = folder / "stamp.replica.toml"
    text = "".join(
        f"{key} = {value}\n" if isinstance(value, int | float) else f'{key} = "{value}"\n'
        for key, value in lines.items()
    )
    path.write_text(text)
    return path
