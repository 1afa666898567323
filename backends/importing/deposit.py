"""Writes a `Material` as a committed step of a run, and publishes it.

Owns the order (room, shards, small files, probe, commit, channel) and the cast of dtypes.
Invariant: one shard is in memory at a time; a step appears only when all of it is on the disk and
finite.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backends.checkpoint import ChannelRecord, Part, Run, Staging, commit, publish
from backends.checkpoint.tensors import finite
from backends.importing.blueprint import Blueprint, blueprint
from backends.importing.material import ImportFailed, Material
from backends.importing.probe import make_probe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of one file: a shard is in memory while it is written.
SHARD_BYTES = 2 << 30

# Called as tensors are written, with the bytes of each.
Progress = Callable[[int], None]


def deposit(
    material: Material,
    run: Run,
    *,
    channel: str = "stable",
    dtype: str | None = None,
    progress: Progress = lambda _: None,
    shard_bytes: int = SHARD_BYTES,
) -> ChannelRecord:
    """The channel's record of the new version, the run's next step.

    Raises ImportFailed when the source does not fit, a CheckpointError or OSError when it cannot be
    written; the run is then as it was.
    """
    plan = blueprint(material, DTYPES[dtype] if dtype is not None else None)
    step = max(run.steps(), default=-1) + 1
    staging = Staging(run, step, f"import{os.getpid()}", 0)
    staging.create()
    try:
        parts = _write(material, plan, staging, progress, shard_bytes)
        model = {"class": plan.class_, "config": plan.config}
        expected: dict[str, tuple[Sequence[int], torch.dtype]] = dict(plan.tensors)
        expected |= {alias: expected[name] for alias, name in plan.ties.items()}
        probe = make_probe(plan, staging.folder / "model", material.files)
    except BaseException:
        staging.discard()
        raise
    commit(
        staging,
        parts,
        ranks=1,
        model=model,
        expected=expected,
        position=0,
        probe=probe,
        ties=plan.ties,
    )
    return publish(run, channel, step)


def total_bytes(material: Material, dtype: str | None) -> int:
    plan = blueprint(material, DTYPES[dtype] if dtype is not None else None)
    return sum(math.prod(shape) * kind.itemsize for shape, kind in plan.tensors.values())


def _write(
    material: Material, plan: Blueprint, staging: Staging, progress: Progress, shard_bytes: int
) -> list[Part]:
    files = _planned(plan, shard_bytes)
    parts = []
    for index, names in enumerate(files):
        tensors = {}
        for name in names:
            tensors[name] = _cast(name, material.read(name), plan.tensors[name][1])
            progress(tensors[name].nbytes)
        parts.append(staging.write_shard(index, len(files), tensors))
    for name, data in material.files.items():
        parts.append(staging.write_file(f"model/{name}", data))
    return parts


def _planned(plan: Blueprint, limit: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    room = limit
    for name, (shape, dtype) in plan.tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if files[-1] and size > room:
            files.append([])
            room = limit
        files[-1].append(name)
        room -= size
    return files


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype).contiguous()
    if not finite(cast):
        told = "holds values that are no finite numbers"
        if finite(tensor):
            told = f"does not fit {dtype}; use --dtype bf16"
        raise ImportFailed(f"tensor {name} {told}")
    return cast
