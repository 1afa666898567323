"""The plug-in point for models: any Python class named "package.module:Class" in a config.

Owns the protocol that such a class follows and the import of it by name. It never constructs a
device, reads a checkpoint or catches a model's exceptions: the worker does. Invariant: a class
that does not follow the protocol is refused at start, with the missing part named.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from backends.wire import Signature

__all__ = ["ServedModel", "TrainableModel", "import_class"]


@runtime_checkable
class ServedModel(Protocol):
    """What a tensor replica executes; usually a `torch.nn.Module`, which then also loads weights.

    Constructed as `Class(**config)`, `config` being the checkpoint's (or the file's) table.
    `signature` may be a class attribute or set by `__init__`. A model may have two more things:
    `load_state_dict`, without which it cannot come from a checkpoint, and `example()`, a mapping of
    inputs to warm up with where zeros (and empty strings) are nothing it can take.
    """

    signature: Signature

    def infer(self, **inputs: Any) -> Mapping[str, Any]:
        """Batch in, batch out: each tensor has the batch first; BYTES come, and may be returned,
        as a list of flat `list[bytes]` per row; numpy arrays may be returned too. Runs under
        `torch.inference_mode` on the device thread, and once more with each request alone after it
        raised. Inputs with a variable dimension come with `<input>_lengths` where the signature
        pads or concatenates; an output is cut to each request's part if `<output>_lengths` is
        returned. What is returned must not be written to again: its memory is sent as it is."""
        ...


@runtime_checkable
class TrainableModel(Protocol):
    """What the trainer trains: a `torch.nn.Module` that can say its own loss.

    `loss(batch)` takes {name: tensor [batch, …]} and returns the scalar mean loss and a mapping of
    further scalar means to report (accuracy, say).
    """

    def loss(
        self, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]: ...


def import_class(path: str, *, root: Path | None = None) -> type[Any]:
    """The class that "package.module:Class" names. `root` (a config file's folder) is searched
    too, so that a model may stand beside the file that names it.

    Raises ValueError, saying which half of the name is wrong.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f'model {path!r} is not of the form "package.module:Class"')
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(f"model {path!r}: there is no module {error.name!r}") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"model {path!r}: module {module_name!r} has no class {class_name!r}")
    return found
