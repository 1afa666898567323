"""EfficientNet-Lite, for image classification: depthwise convolutions, no squeeze, no swish.

Owns the module; parameters are named as in the published weights (`efficientnet-lite0-pytorch-
model`). Source: EfficientNet (Tan & Le, 2019), with the changes of its Lite variants: ReLU6, no
squeeze-and-excitation, stem and head not scaled.

Shape suffixes: N images, C channels, Y rows, X columns, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.wire import Signature, TensorSpec

# Lite 0 to 4: (width, depth, pixels of a side).
VARIANTS = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))
# Of each stage: (blocks, kernel, stride, expansion, channels out).
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280
EPSILON = 1e-3  # of the batch norms, as in training


class EfficientNetLite(nn.Module):
    """`variant` 0 to 4. Images are bytes, rows of RGB pixels; `labels` names the classes."""

    def __init__(
        self,
        variant: int = 0,
        classes: int = 1000,
        labels: tuple[str, ...] = (),
        max_batch_size: int = 32,
    ) -> None:
        super().__init__()
        width, depth, self.pixels = VARIANTS[variant]
        self._conv_stem = nn.Conv2d(3, STEM, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPSILON)
        self._blocks = nn.ModuleList()
        channels = STEM
        for place, (blocks, kernel, stride, expansion, out) in enumerate(STAGES):
            ends = place in (0, len(STAGES) - 1)
            out = _round(out * width)
            for index in range(blocks if ends else ceil(blocks * depth)):
                step = stride if index == 0 else 1
                self._blocks.append(_Block(channels, out, kernel, step, expansion))
                channels = out
        self._conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, eps=EPSILON)
        self._fc = nn.Linear(HEAD, classes)
        self.signature = Signature(
            inputs=(TensorSpec("image", "UINT8", (self.pixels, self.pixels, 3)),),
            outputs=(TensorSpec("probabilities", "FP32", (classes,), labels=tuple(labels)),),
            max_batch_size=max_batch_size,
        )

    def forward(self, x_NCYX: Tensor) -> Tensor:
        """Logits [N, K] of images in [-1, 1]."""
        x_NCYX = functional.relu6(self._bn0(_same(x_NCYX, self._conv_stem)))
        for block in self._blocks:
            x_NCYX = block(x_NCYX)
        x_NCYX = functional.relu6(self._bn1(self._conv_head(x_NCYX)))
        logits_NK: Tensor = self._fc(x_NCYX.mean((2, 3)))
        return logits_NK

    def infer(self, image: Tensor) -> Mapping[str, Tensor]:
        x_NCYX = (image.permute(0, 3, 1, 2).to(self._fc.weight.dtype) - 127) / 128
        # Depthwise convolutions on CPUs are several times as fast with the channels last.
        x_NCYX = x_NCYX.contiguous(memory_format=torch.channels_last)
        return {"probabilities": self(x_NCYX).float().softmax(-1)}


class _Block(nn.Module):
    """Widen, filter each channel, narrow; added to what came in where the shapes agree."""

    def __init__(self, fan_in: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = fan_in * expansion
        self._expands = expansion != 1
        if self._expands:
            self._expand_conv = nn.Conv2d(fan_in, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=EPSILON)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=EPSILON)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, eps=EPSILON)
        self._adds = stride == 1 and fan_in == out

    def forward(self, x_NCYX: Tensor) -> Tensor:
        y_NCYX = x_NCYX
        if self._expands:
            y_NCYX = functional.relu6(self._bn0(self._expand_conv(y_NCYX)))
        y_NCYX = functional.relu6(self._bn1(_same(y_NCYX, self._depthwise_conv)))
        y_NCYX = self._bn2(self._project_conv(y_NCYX))
        out: Tensor = x_NCYX + y_NCYX if self._adds else y_NCYX
        return out


def _same(x_NCYX: Tensor, conv: nn.Conv2d) -> Tensor:
    """As TensorFlow pads, in which the weights were trained: what is odd goes below and right."""
    pads: list[int] = []
    sizes = x_NCYX.shape[:1:-1]
    for size, kernel, stride in zip(sizes, conv.kernel_size, conv.stride, strict=True):
        missing = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [missing // 2, missing - missing // 2]
    padded: Tensor = conv(functional.pad(x_NCYX, pads))
    return padded


def _round(channels: float) -> int:
    """To a multiple of 8, and not down by more than a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
