"""Arrays that travel together arrive as they were."""

from __future__ import annotations

import numpy as np
import torch

from backends.llm.engine.staging import pack, put, unpack

ARRAYS = [
    np.arange(7, dtype=np.int64),
    np.ones((3, 5), np.float32),
    np.zeros((0, 4), np.int32),
    np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[:, 1:],
    np.linspace(0, 1, 3),
    np.array([[2, 3]], np.int32),
]


def test_what_is_packed_comes_out_as_it_was() -> None:
    for array, tensor in zip(ARRAYS, unpack(pack(ARRAYS), ARRAYS), strict=True):
        found = tensor.numpy()
        assert found.dtype == array.dtype and found.shape == array.shape
        assert (found == array).all()


def test_on_a_cpu_they_are_the_arrays_themselves() -> None:
    array = np.zeros(3)
    (tensor,) = put(torch.device("cpu"), array)
    array[1] = 5
    assert tensor[1] == 5
