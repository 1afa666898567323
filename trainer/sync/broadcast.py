"""Parameter broadcast: each parameter has a root, whose value overwrites all others at every step.

Owns the buckets and their roots. The gradient's mean is reduced to the root only, which alone holds
the optimizer's moments, steps, and broadcasts; so a rank keeps its share of the moments. Roots are
replicas: where several ranks share one, each rank does this for the parts that it holds, among the
ranks that hold the same parts. Bytes: one reduce and one broadcast, as an all-reduce has.
Invariant: after every step all replicas hold the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.parallel import Alone, Parallel
from trainer.replicate import BUCKET_BYTES, Bucket, Replicated, fill
from trainer.shards import aligned, local, wrapper


class RootedBucket(Bucket):
    """Parameters with the same root: the replica `root`, of those in `group`."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        root: int,
        mine: bool,
        group: dist.ProcessGroup | None,
    ) -> None:
        super().__init__(parameters)
        self._group, self.mine = group, mine
        self._source = root if group is None else dist.get_global_rank(group, root)

    def pack(self, ranks: int) -> Tensor:
        grads = [
            torch.zeros_like(local(p)) if p.grad is None else local(aligned(p.grad, p))
            for p in self.parameters
        ]
        return torch.cat([grad.reshape(-1) for grad in grads]).div_(ranks)

    def launch(self, group: dist.ProcessGroup | None, ranks: int) -> None:
        self.flat = self.pack(ranks)
        self.work = dist.reduce(self.flat, dst=self._source, group=self._group, async_op=True)

    def land(self) -> None:
        for parameter, part in self._parts():
            # What is left elsewhere is a part of the sum at best.
            parameter.grad = wrapper(parameter)(part) if self.mine else None
        self.missing = len(self.parameters)

    def announce(self) -> None:
        self.flat = torch.cat([local(parameter).reshape(-1) for parameter in self.parameters])
        self.work = dist.broadcast(self.flat, src=self._source, group=self._group, async_op=True)

    def hear(self) -> None:
        for parameter, part in self._parts():
            if not self.mine:
                local(parameter).copy_(part)

    def _parts(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Waits; then each parameter, with what this rank's part of it has become."""
        assert self.flat is not None and self.work is not None
        self.work.wait()
        at = 0
        for parameter in self.parameters:
            shape = local(parameter).shape
            yield parameter, self.flat[at : at + shape.numel()].view(shape)
            at += shape.numel()
        self.flat = self.work = None


class Broadcast(Replicated):
    """See `sync.method.Method`. `roots` gives the root of each parameter that is trained.

    `parallel` was built over one replica's mesh. `group` are the ranks that hold the same parts in
    each replica; None where a replica is one rank, whose gradients then leave during backward.
    """

    own = ""

    def __init__(
        self,
        parallel: Parallel,
        replica: int,
        replicas: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        trained = {n: p for n, p in parallel.model.named_parameters() if p.requires_grad}
        names = {id(parameter): name for name, parameter in trained.items()}
        total = sum(p.nbytes for p in trained.values())
        limit = max(1, min(BUCKET_BYTES, -(-total // (2 * replicas))))
        buckets, load = list[RootedBucket](), [0] * replicas
        self.replica = replica
        self.roots: dict[str, int] = {}

        def root_at(root: int, members: Sequence[nn.Parameter]) -> None:
            load[root] += sum(p.nbytes for p in members)
            self.roots.update({names[id(p)]: root for p in members})
            buckets.append(RootedBucket(members, root, root == replica, group))

        # Both ends of a pipeline must add up their tied weights in the same order.
        tied = parallel.sync.tied if isinstance(parallel.sync, Alone) else ()
        for parameter in tied:
            root_at(0, [parameter])
        rest = [p for p in trained.values() if all(p is not other for other in tied)]
        for members in fill(rest, limit):
            root_at(min(range(replicas), key=load.__getitem__), members)
        super().__init__((), replicas, buckets=buckets, early=group is None)
        self._rooted, self._inner = buckets, parallel.sync

    def before_backward(self, last: bool) -> None:
        super().before_backward(last)
        self._inner.before_backward(last)

    def after_backward(self) -> None:
        self._inner.after_backward()
        super().after_backward()

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
