"""The one kind of pickle that is read: published EfficientNet-Lite weights, as tensors only.

Owns the reading, with `weights_only`: nothing that a file contains is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from backends.importing.material import ImportFailed, Material

NAME = re.compile(r"efficientnet-lite([0-4])[-.\w]*\.pth")


def read_efficientnet(path: Path) -> Material:
    """Raises ImportFailed."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise ImportFailed(
            f"{path.name}: of pickles, only efficientnet-lite0 … 4 are read; save other models as "
            "safetensors"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise ImportFailed(f"{path.name}: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ImportFailed(f"{path.name} holds more than tensors by name")
    config = {"architectures": ["EfficientNetLite"], "variant": int(match[1])}
    shapes = {str(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    return Material(path.stem, config, shapes, tensors.__getitem__, {})
