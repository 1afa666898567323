"""Which kernels a device has."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch

from backends.llm.attention.kernels import Geometry, Kernels
from backends.llm.attention.plain import PlainKernels


def kernels_for(device: torch.device) -> Callable[[Geometry], Kernels]:
    """Triton's on a GPU. Torch for NVIDIA brings Triton with it; without, torch alone works, but
    waits for the device in every layer."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from backends.llm.attention.triton import TritonKernels

        processors = torch.cuda.get_device_properties(device).multi_processor_count
        return lambda geometry: TritonKernels(geometry, processors)
    return PlainKernels
