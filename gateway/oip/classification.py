"""The classification extension: an output's highest values instead of the output."""

from __future__ import annotations

from heapq import nlargest
from math import isnan, prod

from gateway.oip.values import Values, join_strings
from gateway.request import Tensor


def classify(tensor: Tensor, classes: int, labels: tuple[str, ...], values: Values) -> Tensor:
    """BYTES [rows, k] of "value:index[:label]", highest first, k at most the row's elements.

    Equal values keep the order of their indices; NaN comes last. As in Triton, fractions have six
    decimals. Raises BadValue where the tensor's data is none of its datatype.
    """
    numbers = values.numbers(tensor.data)
    rows, width = tensor.shape[0], prod(tensor.shape[1:])
    count = min(classes, width)
    elements: list[bytes] = []
    for start in range(0, rows * width, width or 1):
        row = numbers[start : start + width]

        def rank(index: int, row: tuple[float, ...] = tuple(row)) -> float:
            return float("-inf") if isnan(row[index]) else row[index]

        for index in nlargest(count, range(width), key=rank):
            value = f"{row[index]:f}" if values.is_float else f"{row[index]:d}"
            label = f":{labels[index]}" if index < len(labels) else ""
            elements.append(f"{value}:{index}{label}".encode())
    return Tensor(tensor.name, "BYTES", (rows, count), join_strings(elements))
