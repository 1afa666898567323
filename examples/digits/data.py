"""scikit-learn's handwritten digits as tensors, split once and for all by a fixed permutation."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor


class DigitsData:
    """1,797 labelled images of 64 pixels: 1,437 to train on, 360 held out."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        self._image = torch.from_numpy(images[order].astype(np.float32))
        self._digit = torch.from_numpy(labels[order].astype(np.int64))

    def train(self) -> dict[str, Tensor]:
        return {"image": self._image[:1437], "digit": self._digit[:1437]}

    def held_out(self) -> dict[str, Tensor]:
        return {"image": self._image[1437:], "digit": self._digit[1437:]}
