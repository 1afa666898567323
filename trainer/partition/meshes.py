"""The mesh for as many ranks as there are, when they are others than were asked for.

Owns the choice: layers stay cut as they are (tp), then the pipeline keeps its length, then
sequences stay cut (cp), then a copy keeps its shards; data parallelism takes what changes. Pure.
Invariant: there is a mesh for every number of ranks, and the one that was asked for is taken
wherever it fits.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config import ParallelConfig
from trainer.mesh import MeshPlan


def fit(config: ParallelConfig, ranks: int) -> MeshPlan:
    """As asked, where that fits; else the nearest that uses every rank."""
    try:
        return MeshPlan.of(config, ranks)
    except ValueError:
        pass
    for tp in _divisors(config.tp):
        for pp in _divisors(config.pp):
            for cp in _divisors(config.cp):
                rest, over = divmod(ranks, tp * pp * cp)
                if over or not rest:
                    continue
                copies = _copies(config, rest)
                return MeshPlan(dp_replicate=copies, dp_shard=rest // copies, pp=pp, tp=tp, cp=cp)
    raise AssertionError("a mesh of dp alone fits always")


def _copies(config: ParallelConfig, rest: int) -> int:
    """How many copies of the model share `rest` ranks."""
    # Shards as large as they were, or larger: a smaller number of them may not fit in memory.
    wanted = rest // config.dp_shard if config.dp_shard > 0 else config.dp_replicate
    return next(size for size in _divisors(rest) if size <= max(1, wanted))


def _divisors(number: int) -> Iterator[int]:
    """The largest first."""
    return (size for size in range(number, 0, -1) if number % size == 0)
