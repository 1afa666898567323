"""Gradients of replicated models: averaged over ranks, bucket by bucket, while backward goes on.

Owns the buckets, which never change: in reverse order of the parameters, filled up to a size. DDP
lays its buckets out anew after the first step, and the order in which a ring adds an element hangs
on where in its bucket it lies: a resumed run would differ in the last bit. Invariant: all ranks
reduce the same buckets in the same order, whichever gradients were ready first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

# As DDP's: large enough for the network, small enough to begin early.
BUCKET_BYTES = 25 * 2**20


class Bucket:
    """Parameters whose gradients travel together."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        self.missing = len(self.parameters)
        self.flat: Tensor | None = None
        self.work: dist.Work | None = None

    def pack(self, ranks: int) -> Tensor:
        """This rank's part of the mean gradient."""
        # A parameter that this rank's samples did not touch may have a gradient elsewhere.
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        return torch.cat([grad.reshape(-1) for grad in grads]).div_(ranks)

    def launch(self, group: dist.ProcessGroup | None, ranks: int) -> None:
        self.flat = self.pack(ranks)
        self.work = dist.all_reduce(self.flat, group=group, async_op=True)

    def land(self) -> None:
        """Waits, and makes the gradients views of the reduced bucket."""
        assert self.flat is not None and self.work is not None
        self.work.wait()
        at = 0
        for parameter in self.parameters:
            parameter.grad = self.flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        self.flat = self.work = None
        self.missing = len(self.parameters)


class Replicated:
    """The synchronisation of replicas (see `parallel.GradientSync`). `exchanged` counts the bytes
    that this rank has handed over."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        ranks: int,
        group: dist.ProcessGroup | None = None,
        buckets: Sequence[Bucket] | None = None,
        early: bool = True,
    ) -> None:
        """`early`: whether a gradient is whole as soon as backward has made it."""
        self._group, self._ranks = group, ranks
        self._buckets = buckets or [Bucket(members) for members in fill(parameters)]
        self._launched, self._last = 0, False
        self.exchanged = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters if early else ():
                hook = self._ready(bucket)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def before_backward(self, last: bool) -> None:
        self._last = last

    def after_backward(self) -> None:
        self._launch(len(self._buckets))
        for bucket in self._buckets:
            bucket.land()
        self._launched = 0

    def _ready(self, bucket: Bucket) -> Callable[[nn.Parameter], None]:
        def hook(parameter: nn.Parameter) -> None:
            if not self._last:
                return
            bucket.missing -= 1
            whole = self._launched
            while whole < len(self._buckets) and not self._buckets[whole].missing:
                whole += 1
            self._launch(whole)

        return hook

    def _launch(self, until: int) -> None:
        for bucket in self._buckets[self._launched : until]:
            bucket.launch(self._group, self._ranks)
            assert bucket.flat is not None
            self.exchanged += bucket.flat.nbytes
        self._launched = max(self._launched, until)


def fill(parameters: Sequence[nn.Parameter], limit: int = BUCKET_BYTES) -> list[list[nn.Parameter]]:
    """The parameters in reverse order, cut into lists of one dtype and about `limit` bytes."""
    buckets: list[list[nn.Parameter]] = []
    room, dtype = 0, None
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not buckets or size > room or parameter.dtype != dtype:
            buckets.append([])
            room, dtype = limit, parameter.dtype
        buckets[-1].append(parameter)
        room -= size
    return buckets
