"""A model and data for the trainer's tests: small, but with all that can go wrong.

Dropout draws random numbers, batch norm keeps buffers, blocks sit in a module list. 200 samples and
a batch of 24 do not divide, so batches straddle epochs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.wire import Signature, TensorSpec


class Tiny(nn.Module):
    """Eight numbers to three classes. `poison` makes the loss NaN from that call on."""

    signature = Signature(
        inputs=(TensorSpec("x", "FP32", (8,)),),
        outputs=(TensorSpec("scores", "FP32", (3,)), TensorSpec("label", "INT64", (1,))),
        max_batch_size=32,
    )

    def __init__(self, width: int = 16, dropout: float = 0.1, poison: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)
        self._poison, self._calls = poison, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(functional.gelu(self.stem(x)))
        for block in self.blocks:
            x = x + self.drop(functional.gelu(block(x)))
        return self.head(x)

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits = self(batch["x"])
        loss = functional.cross_entropy(logits, batch["y"])
        self._calls += 1
        if self._poison is not None and self._calls >= self._poison:
            loss = loss * float("nan")
        return loss, {"accuracy": (logits.argmax(-1) == batch["y"]).float().mean()}

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        scores = self(x).softmax(-1)
        return {"scores": scores, "label": scores.argmax(-1, keepdim=True)}


class Plain(Tiny):
    """Nothing that depends on how a batch is split: ranks of any number train it alike."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(width, dropout=0.0)
        self.norm = nn.LayerNorm(width)


class Filled(nn.Module):
    """Fills its own tensors, so it is built without memory; input and output share a weight."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.inward = nn.Linear(8, width)
        self.middle = nn.Linear(width, width, bias=False)
        self.twin = nn.Linear(width, width, bias=False)
        self.twin.weight = self.middle.weight
        self.outward = nn.Linear(width, 3)
        self.register_buffer("scale", torch.ones(width))

    def init_tensor(self, name: str, tensor: Tensor, generator: torch.Generator) -> None:
        if name == "scale":
            tensor.fill_(0.5)
        elif tensor.ndim > 1:
            tensor.normal_(0, tensor.shape[-1] ** -0.5, generator=generator)
        else:
            tensor.fill_(0.25)

    def loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        x = functional.gelu(self.inward(batch["x"])) * self.scale
        x = x + self.twin(functional.gelu(self.middle(x)))
        return functional.cross_entropy(self.outward(x), batch["y"]), {}


class Points:
    """Three clouds in eight dimensions."""

    def __init__(self, samples: int = 200) -> None:
        generator = torch.Generator().manual_seed(1)
        count = samples + 50
        self._y = torch.arange(count) % 3
        centres = torch.randn(3, 8, generator=generator)
        self._x = centres[self._y] + 0.7 * torch.randn(count, 8, generator=generator)

    def train(self) -> dict[str, Tensor]:
        return {"x": self._x[50:], "y": self._y[50:]}

    def held_out(self) -> dict[str, Tensor]:
        return {"x": self._x[:50], "y": self._y[:50]}


CONFIG = """
run = "{run}"
seed = 3
steps = 30
log_every = 1

[model]
class = "tests.trainer.tiny:Tiny"

[data]
class = "tests.trainer.tiny:Points"
batch_size = 24

[optimizer]
lr = 1e-2
weight_decay = 0.01
clip = 5.0

[schedule]
name = "cosine"
warmup = 3

[checkpoint]
every = 5
keep = 20

[publish]
channel = "stable"
require = "accuracy >= 0.5"
"""


class Sentences:
    """Tokens that mostly follow from the one before, of sixteen kinds."""

    def __init__(self, samples: int = 64, length: int = 16) -> None:
        generator = torch.Generator().manual_seed(2)
        count = samples + 16
        tokens = torch.randint(0, 16, (count, length), generator=generator)
        for at in range(1, length):
            follows = torch.rand(count, generator=generator) < 0.8
            tokens[:, at] = torch.where(follows, (tokens[:, at - 1] * 3 + 1) % 16, tokens[:, at])
        self._tokens, self._samples = tokens, samples

    def train(self) -> dict[str, Tensor]:
        return {"tokens": self._tokens[: self._samples]}

    def held_out(self) -> dict[str, Tensor]:
        return {"tokens": self._tokens[self._samples :]}


DECODER = """
run = "{run}"
seed = 3
steps = 4
log_every = 1

[model]
class = "backends.models.decoder:Decoder"

[model.config]
model_type = "qwen3"
head_dim = 4
tie_word_embeddings = true
vocab_size = 16
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2

[data]
class = "tests.trainer.tiny:Sentences"
batch_size = 8
micro_batch = 2

[optimizer]
lr = 1e-2
weight_decay = 0.01
clip = 1.0

[checkpoint]
every = 2
"""
