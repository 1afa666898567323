"""A toy model's checkpoints: every value is the step, so that a tensor tells where it came from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from backends.checkpoint import Failed, Manifest, Part, Run, Staging, commit, read_tensors

MODEL = {"class": "model:Toy", "config": {"width": 2}}


def shards(step: int) -> list[dict[str, Tensor]]:
    """Two ranks' shares of the model."""
    return [
        {"a.weight": torch.full((3, 2), float(step)), "a.steps": torch.tensor(step)},
        {"b.weight": torch.full((5,), float(step)).bfloat16(), "b.empty": torch.empty(0, 4)},
    ]


def tensors(step: int) -> dict[str, Tensor]:
    return {name: tensor for shard in shards(step) for name, tensor in shard.items()}


def expected(mapping: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mapping.items()}


def staged(run: Run, step: int, attempt: str = "1") -> tuple[Staging, list[Part | Failed]]:
    """Both ranks have written; rank 0's state too."""
    ranks = [Staging(run, step, attempt, rank) for rank in (0, 1)]
    ranks[0].create()
    parts = [
        rank.guarded(lambda rank=rank: rank.write_shard(rank.rank, 2, shards(step)[rank.rank]))
        for rank in ranks
    ]
    (ranks[0].folder / "state" / ".metadata").write_bytes(b"optimizer" * step)
    return ranks[0], [*parts, ranks[0].guarded(lambda: ranks[0].adopt(["state"]))]


def finish(staging: Staging, parts: Sequence[Part | Failed], **changes: object) -> Manifest:
    options = {
        "model": MODEL,
        "expected": expected(tensors(staging.step)),
        "position": staging.step * 10,
        "evaluation": {"accuracy": 0.5},
        "ranks": 2,
    }
    return commit(staging, parts, **{**options, **changes})


def make(run: Run, step: int, attempt: str = "1") -> Manifest:
    return finish(*staged(run, step, attempt))


def loads(run: Run, step: int) -> bool:
    """Whether `read_tensors` gives exactly what was committed as `step`."""
    found = read_tensors(run.folder(step), run.manifest(step))
    wanted = tensors(step)
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name])
        for name in wanted
    )
