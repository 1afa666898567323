"""Ranks that look at each other: what must be equal among replicas, checked at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from trainer.shards import local


def digest(tensors: Mapping[str, Tensor]) -> str:
    hasher = xxhash.xxh3_128()
    for name in sorted(tensors):
        hasher.update(local(tensors[name]).contiguous().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


def watch_replicas() -> None:
    """After each step: the agreed parameters have the same bits everywhere, and the model's own do
    where a step ends an exchange; between exchanges they have not."""
    from trainer.loop import Loop

    step = Loop._step

    def watched(self, number):  # type: ignore[no-untyped-def]
        step(self, number)
        model, sync = self._parts.parallel.model, self._parts.sync
        own = {n: p.detach() for n, p in model.named_parameters()}
        agreed = {n: sync.stored(n, p) for n, p in own.items()}
        said: list[object] = [None] * dist.get_world_size()
        dist.all_gather_object(said, (digest(own), digest(agreed)))
        assert len({a for _, a in said}) == 1, f"step {number}: agreed on different values"
        config = self._config.sync
        together = config.method == "broadcast" or (
            config.fragments == 1 and not config.overlap and number % config.every == 0
        )
        assert (len({o for o, _ in said}) == 1) == together, f"step {number}: {said}"

    Loop._step = watched  # type: ignore[method-assign]
