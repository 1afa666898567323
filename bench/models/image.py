"""Images in, one number out: a model that reads little, so that moving its input is what costs.

Owns the recipe of the number, for the check: it samples the whole image, so an answer is right only
if all of it arrived where it belongs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backends.wire import Signature, TensorSpec

SHAPE = (3, 224, 224)
BYTES = 4 * 3 * 224 * 224
# About one pixel of every page of memory.
STRIDE = 997


class Image:
    """224×224 RGB in FP32 (602,112 bytes) to the sum of every 997th value."""

    signature = Signature(
        inputs=(TensorSpec("image", "FP32", SHAPE),),
        outputs=(TensorSpec("sum", "FP32", (1,)),),
        max_batch_size=16,
    )

    def infer(self, image: Tensor) -> Mapping[str, Tensor]:
        return {"sum": image.flatten(1)[:, ::STRIDE].sum(1, keepdim=True)}


def reference(image_CHW: NDArray[np.float32]) -> float:
    return float(image_CHW.ravel()[::STRIDE].sum())
