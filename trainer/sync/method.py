"""What every method of synchronisation does for the loop.

Owns the seam. A replica is one copy of the model, on one rank or sharded over several. Methods
differ in what travels between replicas and when; the loop calls all of them alike. Invariant: the
agreed parameters are the same on all replicas after every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor

from trainer.parallel import GradientSync


class Method(Protocol):
    """`exchanged` counts the bytes that this rank has handed over for exchange; `own` stands before
    the names of what differs from replica to replica."""

    @property
    def exchanged(self) -> int: ...

    @property
    def own(self) -> str: ...

    def before_backward(self, last: bool) -> None:
        """Before each micro-batch's backward; `last` is the step's last one."""

    def after_backward(self) -> None:
        """After the last: gradients are then those that the optimizer applies."""

    def after_step(self, step: int) -> None:
        """After the optimizer's. Collective."""

    def agreed(self) -> AbstractContextManager[None]:
        """Within it, the model has the agreed parameters: what is evaluated and published."""

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """The agreed value of a parameter (or of a buffer) of the model."""

    def tensors(self) -> Mapping[str, Tensor]:
        """What else a checkpoint needs, by name; live, and complete when this returns."""

    def resume(self, step: int, exact: bool) -> None:
        """After loading at `step`. Not `exact`: only the agreed parameters could be read."""


class Gradients:
    """Gradients travel during backward, by what `parallel` chose; nothing else does."""

    own = ""

    def __init__(self, inner: GradientSync) -> None:
        self._inner = inner

    @property
    def exchanged(self) -> int:
        return int(getattr(self._inner, "exchanged", 0))

    def before_backward(self, last: bool) -> None:
        self._inner.before_backward(last)

    def after_backward(self) -> None:
        self._inner.after_backward()

    def after_step(self, step: int) -> None:
        pass

    @contextmanager
    def agreed(self) -> Iterator[None]:
        yield

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def tensors(self) -> Mapping[str, Tensor]:
        return {}

    def resume(self, step: int, exact: bool) -> None:
        pass
