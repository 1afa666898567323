"""What the surface needs to know of the models behind it: the seam to the dispatcher.

Protocols only. The surface asks for a model by name on each call and keeps none, so a directory may
change at any time; it submits a request to the model that it found and hears of it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from backends.wire import Signature
from gateway.errors import GatewayError
from gateway.oip.statistics import ModelStats
from gateway.request import TensorRequest

# Called once when an operation has ended: None where it succeeded.
Done = Callable[[GatewayError | None], None]


class ModelView(Protocol):
    """One model as clients see it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """ "tensor", or what else serves by another surface."""

    @property
    def signature(self) -> Signature | None:
        """None until a replica has said it. The same object until it changes."""

    @property
    def max_batch_size(self) -> int | None:
        """The most rows of one request; None until a replica has said its signature."""

    @property
    def versions(self) -> Sequence[str]:
        """All that can be asked for now, the one that serves by default first."""

    @property
    def ready(self) -> bool: ...

    def reason(self) -> str:
        """Why it is not ready, for people."""

    @property
    def stats(self) -> ModelStats: ...

    def submit(self, request: TensorRequest) -> None:
        """Take the request; it ends through `request.finish`, possibly before this returns."""


@runtime_checkable
class Switchable(Protocol):
    """A ModelView that can also be taken out of service and back: repository load and unload.

    Optional: a model that lacks these is listed by the repository index and refuses both verbs.
    """

    @property
    def unloaded(self) -> bool:
        """Whether `unload` took it out of service; it then does not count as unready."""

    def load(self, done: Done) -> None:
        """Ask the replicas to reload what they follow, and put them back into service."""

    def unload(self, done: Done) -> None:
        """Drain: what waits and runs is answered, nothing new is taken."""


@runtime_checkable
class Generative(Protocol):
    """A ModelView whose replicas answer calls, in words: chat, completions, generate, embeddings.

    Optional: a model that lacks this takes tensors and nothing else.
    """

    @property
    def surfaces(self) -> frozenset[str]:
        """The forms of calls that it answers; empty until a replica has said them."""


def generates(view: ModelView) -> bool:
    return isinstance(view, Generative) and "generate" in view.surfaces


class Directory(Protocol):
    """All models, by name."""

    def model(self, name: str) -> ModelView:
        """Raises ModelNotFound."""

    def models(self) -> Sequence[ModelView]: ...


# Statistics of the whole gateway by model, where more than one worker shares the port: calls back
# once, with the sums over all workers or with why they could not be had.
Gather = Callable[[Callable[[Mapping[str, ModelStats] | GatewayError], None]], None]
