"""How fast a training is: samples and tokens a second, and the share of the device's peak (MFU).

Owns the arithmetic of a sample, counted once on a model without memory, and the peak: a GPU's from
its data sheet, a CPU's measured. Invariant: recomputation does not count, so that only useful
arithmetic raises the MFU.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Dense bf16 products, in FLOP/s, as the makers give them.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}
# Large enough for a CPU's best rate, and done in milliseconds.
MEASURED = 768
MEASURE_S = 0.05


@dataclass(frozen=True, slots=True)
class Speed:
    """What a second of training is worth. `tokens` and `flops` are of a sample, `peak` of all
    ranks; None where it is not known."""

    tokens: float | None
    flops: float | None
    peak: float | None

    def rates(self, samples_per_s: float) -> dict[str, float]:
        found = {"samples_per_s": _short(samples_per_s)}
        if self.tokens is not None:
            found["tokens_per_s"] = _short(samples_per_s * self.tokens)
        if self.flops is not None and self.peak:
            found["mfu"] = round(samples_per_s * self.flops / self.peak, 4)
        return found


def describe(rates: Mapping[str, float]) -> str:
    """ "12,346 tokens/s  MFU 41.2%  1.2 GiB" """
    unit = "tokens" if "tokens_per_s" in rates else "samples"
    rate = rates[f"{unit}_per_s"]
    parts = [f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.2g} {unit}/s"]
    if "mfu" in rates:
        parts.append(f"MFU {rates['mfu']:.1%}")
    if "memory_bytes" in rates:
        parts.append(f"{rates['memory_bytes'] / 2**30:.1f} GiB")
    return "  ".join(parts)


def _short(rate: float) -> float:
    """A tenth is enough, except of what is slow."""
    return round(rate, 1) if rate >= 10 else float(f"{rate:.3g}")


def memory(device: torch.device) -> int:
    """The most that this rank has held: of the GPU's memory, or of the host's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def count_flops(
    loss: Callable[[Mapping[str, Tensor]], object], batch: Mapping[str, Tensor]
) -> float | None:
    """Of forward and backward of `loss`, a model's on device meta. None for a model that must see
    values."""
    shapes = {name: tensor.to("meta") for name, tensor in batch.items()}
    counter = _Counter()
    try:
        with counter:
            loss(shapes)
    except Exception:  # whatever the user's code does not do without values
        return None
    return counter.flops


class _Counter(TorchFunctionMode):
    """Adds up products, and those of their backward: one for each factor that has a gradient.

    It sees the calls of Python, and so needs no operator of its own for what a model does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        found = function(*arguments, **(keywords or {}))
        name = getattr(function, "__name__", "")
        if name in _PRODUCTS and len(arguments) > 1:
            factors = arguments[: 3 if name == _ATTENTION else 2]
            times = 1 + sum(factor.requires_grad for factor in factors[:2])
            self.flops += times * _PRODUCTS[name](factors, found)
        return found


def _attention(factors: Sequence[Tensor], _: Tensor) -> float:
    """Scores and what they weigh; as if every token saw every other, as is usual for an MFU."""
    query, key, _value = factors
    return 4.0 * query.numel() * key.shape[-2]


def _product(factors: Sequence[Tensor], found: Tensor) -> float:
    return 2.0 * found.numel() * factors[0].shape[-1]


def _convolution(factors: Sequence[Tensor], found: Tensor) -> float:
    return 2.0 * found.numel() * factors[1][0].numel()


_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS: Mapping[str, Callable[[Sequence[Tensor], Tensor], float]] = {
    **dict.fromkeys(("linear", "matmul", "__matmul__", "mm", "bmm"), _product),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    _ATTENTION: _attention,
}


def peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one device for products of `dtype`."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = next((rate for part, rate in PEAKS.items() if part in name), None)
        if known is not None:
            return known
    return _measured(device, dtype)


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.ones(MEASURED, MEASURED, device=device, dtype=dtype)
    best, until = float("inf"), time.monotonic() + MEASURE_S
    while time.monotonic() < until:
        began = time.monotonic()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.monotonic() - began)
    return 2 * MEASURED**3 / best
