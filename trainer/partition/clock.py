"""What layers cost, measured while they work.

Owns hooks on the stages of this rank, for a few steps at the beginning; then they are gone. Only
forward is timed: backward takes a multiple of it that is much the same for all layers, and the
slowest stage is then the same one. Invariant: what is computed does not change by being measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer.partition.layers import Cost
from trainer.shards import local

# Steps that are measured, after a first one in which memory is found and kernels are chosen.
STEPS = 5


@dataclass(slots=True)
class Module:
    """One measured module."""

    seconds: list[float] = field(default_factory=list)
    activations: int = 0
    fixed: int = 0
    _began: Any = None
    _saving: AbstractContextManager[Any] | None = None

    def cost(self) -> Cost:
        # The least: whatever else a machine does can only add to it.
        return Cost(min(self.seconds, default=0.0), self.fixed, self.activations)


class Clock:
    """`modules` by name; `slots` is how many moments the optimizer has for a parameter."""

    def __init__(self, modules: Mapping[str, nn.Module], slots: int, device: torch.device) -> None:
        self._device = device
        self.found = {name: Module(fixed=_fixed(m, slots)) for name, m in modules.items()}
        self._handles: list[Any] = []
        for name, module in modules.items():
            record = self.found[name]
            self._handles += [
                module.register_forward_pre_hook(self._begin(record)),
                module.register_forward_hook(self._end(record)),
            ]
        self._steps = 0

    def step(self) -> None:
        """After each step."""
        self._steps += 1
        if self._steps == 1:
            for record in self.found.values():
                record.seconds.clear()
        if self._steps == STEPS + 1:
            self.close()

    @property
    def done(self) -> bool:
        return self._steps > STEPS

    def costs(self) -> dict[str, Cost]:
        return {name: record.cost() for name, record in self.found.items()}

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, record: Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Sequence[Any]) -> None:
            if not torch.is_grad_enabled():
                return
            if self._steps == 0:
                record._saving = _Saved(record, module)
                record._saving.__enter__()
            record._began = self._now()

        return hook

    def _end(self, record: Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
            if record._began is None:
                return
            record.seconds.append(self._now() - record._began)
            record._began = None
            if record._saving is not None:
                record._saving.__exit__(None, None, None)
                record._saving = None

        return hook

    def _now(self) -> float:
        if self._device.type == "cuda":  # for a few steps only, so that waiting costs little
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Saved:
    """Counts what autograd keeps for backward of one forward, parameters aside."""

    def __init__(self, record: Module, module: nn.Module) -> None:
        self._record = record
        self._seen = {p.untyped_storage().data_ptr() for p in map(local, module.parameters())}
        self._bytes = 0
        self._hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *_: object) -> None:
        self._hooks.__exit__()
        self._record.activations = max(self._record.activations, self._bytes)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._bytes += storage.nbytes()
        return tensor


def _fixed(module: nn.Module, slots: int) -> int:
    """Bytes of this rank's weights, gradients and moments."""
    return sum(local(p).nbytes * (2 + slots) for p in module.parameters() if p.requires_grad) + sum(
        local(p).nbytes for p in module.parameters() if not p.requires_grad
    )
