"""Parameter broadcast: each parameter has a root, whose value overwrites all others at every step.

Owns the buckets and their roots. The gradient's mean is reduced to the root only, which alone holds
the optimizer's moments, steps, and broadcasts; so a rank keeps its share of the moments. Bytes: one
reduce and one broadcast, as an all-reduce has. Invariant: after every step all ranks hold the same
bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.replicate import BUCKET_BYTES, Bucket, Replicated, fill


class RootedBucket(Bucket):
    """Parameters with the same root."""

    def __init__(self, parameters: Sequence[nn.Parameter], root: int, rank: int) -> None:
        super().__init__(parameters)
        self.root, self.mine = root, root == rank

    def launch(self, group: dist.ProcessGroup | None, ranks: int) -> None:
        self.flat = self.pack(ranks)
        self.work = dist.reduce(self.flat, dst=self.root, group=group, async_op=True)

    def land(self) -> None:
        super().land()
        if not self.mine:  # what is left there is a part of the sum at best
            for parameter in self.parameters:
                parameter.grad = None

    def announce(self) -> None:
        self.flat = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        self.work = dist.broadcast(self.flat, src=self.root, async_op=True)

    def hear(self) -> None:
        assert self.flat is not None and self.work is not None
        self.work.wait()
        at = 0
        for parameter in self.parameters:
            if not self.mine:
                part = self.flat[at : at + parameter.numel()]
                parameter.detach().copy_(part.view_as(parameter))
            at += parameter.numel()
        self.flat = self.work = None


class Broadcast(Replicated):
    """See `sync.method.Method`. `roots` gives the root of each parameter that is trained."""

    own = ""

    def __init__(self, parameters: Mapping[str, nn.Parameter], rank: int, ranks: int) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        total = sum(p.nbytes for p in parameters.values())
        limit = max(1, min(BUCKET_BYTES, -(-total // (2 * ranks))))
        buckets, load = list[RootedBucket](), [0] * ranks
        self.rank = rank
        self.roots: dict[str, int] = {}
        for members in fill(list(parameters.values()), limit):
            root = min(range(ranks), key=load.__getitem__)
            load[root] += sum(p.nbytes for p in members)
            self.roots |= {names[id(p)]: root for p in members}
            buckets.append(RootedBucket(members, root, rank))
        super().__init__((), ranks, buckets=buckets)
        self._rooted = buckets

    def after_step(self, step: int) -> None:
        for bucket in self._rooted:
            bucket.announce()
            assert bucket.flat is not None
            self.exchanged += bucket.flat.nbytes
        for bucket in self._rooted:
            bucket.hear()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        yield

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def resume(self, step: int, exact: bool) -> None:
        pass
