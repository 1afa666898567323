"""Parameter accumulation: replicas train alone and exchange parameters every so many steps.

Owns the agreed parameters, the outer optimizer and what is under way. Carrying parameters, their
mean is taken (every step: plain averaging; more rarely: local SGD, Stich 2019). Carrying deltas,
the mean of what each replica changed is a gradient for an outer Nesterov step (DiLoCo, Douillard
et al. 2023). In fragments, with overlap, it is streaming DiLoCo. Between exchanges replicas send
nothing. Invariant: the agreed parameters are bit-equal on all replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config_sync import SyncConfig
from trainer.parallel import Parallel
from trainer.shards import changed, local, wrapper
from trainer.sync.fragments import Fragment, fragments
from trainer.sync.outer import Nesterov

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Parcel:
    """What of a fragment travels: one flat buffer, reduced in place."""

    def __init__(self, fragment: Fragment, parts: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.fragment = fragment
        self._parts = {name: parts[name] for name in fragment.names}
        size = sum(part.numel() for part in self._parts.values())
        device = next(iter(self._parts.values())).device
        self.flat = torch.zeros(size, dtype=dtype, device=device)
        self.full = False
        self._work: dist.Work | None = None
        self._copies = 1

    def views(self) -> Iterator[tuple[str, Tensor]]:
        at = 0
        for name, part in self._parts.items():
            yield name, self.flat[at : at + part.numel()].view(part.shape)
            at += part.numel()

    def send(self, value: Callable[[str], Tensor], group: dist.ProcessGroup | None, n: int) -> None:
        for name, view in self.views():
            view.copy_(value(name))
        self.full, self._copies = True, n
        if n > 1:
            self._work = dist.all_reduce(self.flat, group=group, async_op=True)

    def arrive(self) -> None:
        """Waits until `flat` is the mean over the replicas."""
        if self._work is not None:
            self._work.wait()
            self._work = None
            self.flat.div_(self._copies)


class Accumulate:
    """See `sync.method.Method`. `inner` propagates gradients within the replica."""

    def __init__(
        self,
        parallel: Parallel,
        config: SyncConfig,
        replica: int,
        replicas: int,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._inner, self._objective = parallel.sync, parallel.objective
        self._config, self._group = config, group
        self._replica, self._replicas = replica, replicas
        named = parallel.model.named_parameters()
        self._parameters: dict[str, nn.Parameter] = {n: p for n, p in named if p.requires_grad}
        self._local = {name: local(p) for name, p in self._parameters.items()}
        self._agreed = {name: part.clone() for name, part in self._local.items()}
        self._outer = Nesterov(self._agreed, config.outer_lr, config.outer_momentum)
        self._deltas = config.carries == "deltas"
        sizes = {name: p.numel() for name, p in self._parameters.items()}
        found = fragments(sizes, config.fragments, config.every, config.overlap)
        self._parcels = [Parcel(f, self._local, self._dtype(f)) for f in found]
        self._shape = torch.tensor(
            [replicas, config.every, len(found), config.overlap, self._deltas], dtype=torch.int64
        )
        self.exchanged = 0

    def _dtype(self, fragment: Fragment) -> torch.dtype:
        if self._deltas:
            return DTYPES[self._config.dtype]
        return reduce(torch.promote_types, (self._local[name].dtype for name in fragment.names))

    def before_backward(self, last: bool) -> None:
        self._inner.before_backward(last)

    def after_backward(self) -> None:
        self._inner.after_backward()

    def after_step(self, step: int) -> None:
        """First what left lands, so that nothing is older than it must be."""
        overlap = self._config.overlap
        for parcel in self._parcels:
            if overlap and parcel.full and parcel.fragment.lands(step):
                self._land(parcel)
        leaving = [parcel for parcel in self._parcels if parcel.fragment.leaves(step)]
        for parcel in leaving:
            parcel.send(self._value, self._group, self._replicas)
            self.exchanged += parcel.flat.nbytes if self._replicas > 1 else 0
        if not overlap:
            for parcel in leaving:
                self._land(parcel)

    def _value(self, name: str) -> Tensor:
        own = self._local[name]
        return self._agreed[name] - own if self._deltas else own

    def _land(self, parcel: Parcel) -> None:
        parcel.arrive()
        for name, mean in parcel.views():
            agreed, own = self._agreed[name], self._local[name]
            if self._deltas:
                self._outer.step(name, mean)
            else:
                agreed.copy_(mean)
            if self._config.overlap:
                own.lerp_(agreed, 1 - self._config.blend)
            else:
                own.copy_(agreed)
        parcel.full = False

    @contextmanager
    def agreed(self) -> Iterator[None]:
        own = {name: part.clone() for name, part in self._local.items()}
        self._set(self._agreed)
        try:
            yield
        finally:
            self._set(own)

    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, part in self._local.items():
            part.copy_(values[name])
        changed(self._objective)

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._agreed:
            return tensor
        return wrapper(self._parameters[name])(self._agreed[name])

    @property
    def own(self) -> str:
        """Before the names of what differs from replica to replica."""
        return f"replica.{self._replica}."

    def tensors(self) -> Mapping[str, Tensor]:
        found = {"sync.shape": self._shape}
        wrap = {name: wrapper(p) for name, p in self._parameters.items()}
        if self._config.every > 1:
            for name, part in self._local.items():
                found[f"{self.own}model.{name}"] = wrap[name](part)
        for name, moment in self._outer.momentum.items():
            found[f"sync.momentum.{name}"] = wrap[name](moment)
        if self._config.overlap:
            for parcel in self._parcels:
                parcel.arrive()
                for name, view in parcel.views():
                    found[f"sync.pending.{name}"] = wrap[name](view)
        return found

    def resume(self, step: int, exact: bool) -> None:
        for name, parameter in self._parameters.items():
            self._local[name] = local(parameter)
        for parcel in self._parcels:
            parcel.full = exact and parcel.fragment.under_way(step)
        if not exact or self._config.every == 1:
            self._set(self._agreed)
