"""The probe: a few held-out inputs, and what the published weights answer to them.

Owns the model instance that answers; it is the trainer's own, so a commit in the background touches
neither the training's modules nor its random numbers. Invariant: the answers come from the bytes in
the staged files, read back, through the model's own `infer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from backends.checkpoint import Probe
from backends.models.certain import decoder_probe
from backends.models.decoder import Decoder
from backends.wire import Signature
from trainer.data import Source
from trainer.errors import BadPlugin

# Tokens of a text after which a language model is asked to go on.
PROMPT = 32
_DTYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}


class Prober:
    """Answers from files. Made on the main thread: constructing a model may draw random numbers."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self._model = model.eval()
        self._inputs = dict(inputs)

    def __call__(self, folder: Path) -> Probe:
        """The probe of the weights in `folder`, a staged model/. Raises what reading raises."""
        weights = _read(folder)
        # Tied parameters are stored under one name; the model shares them by itself.
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        shared = _aliases(self._model)
        lacking = [name for name in missing if shared.get(name) not in weights]
        if lacking or unexpected:
            raise ValueError(f"the files lack {lacking} or hold {unexpected} too many")
        with torch.inference_mode():
            outputs = self._model.infer(**self._inputs)  # type: ignore[operator]
        return Probe(
            inputs={name: tensor.tolist() for name, tensor in self._inputs.items()},
            outputs={name: _values(name, tensor) for name, tensor in _telling(outputs).items()},
        )


class TextProber:
    """Of a language model: what it goes on with after held-out texts, as far as it is sure. Its
    weights are the mapped files themselves, so it takes no memory of its own."""

    def __init__(self, on_meta: Callable[[], nn.Module], prompts: Sequence[list[int]]) -> None:
        self._on_meta, self._prompts = on_meta, prompts

    def __call__(self, folder: Path) -> Probe | None:
        """None while it is sure of nothing."""
        model, weights = self._on_meta().eval(), _read(folder)
        assert isinstance(model, Decoder)
        for name, first in _aliases(model).items():
            weights.setdefault(name, weights[first])
        model.load_state_dict(weights, assign=True)
        context = model.config.context
        asked = [prompt for prompt in self._prompts if 0 < len(prompt) < context]
        return decoder_probe(model, asked)


def prompts(held_out: Source, rows: int) -> list[list[int]]:
    """How held-out texts begin; none where the data has no texts of its own."""
    batch = held_out.take(torch.arange(min(rows, len(held_out))))
    return [row[: min(PROMPT, len(row) // 2)].tolist() for row in batch.get("tokens", ())]


def _read(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    return weights


def _aliases(model: nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    return {
        name: first.setdefault(id(tensor), name)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def _telling(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Real-valued outputs, where there are any: a label at a tie may differ from device to device,
    while the scores that it comes from are equal within the tolerance."""
    scores = {name: tensor for name, tensor in outputs.items() if tensor.is_floating_point()}
    return scores or dict(outputs)


def _values(name: str, tensor: Tensor) -> object:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"infer() gives values that are no finite numbers in output {name!r}")
    return tensor.tolist()


def probe_inputs(
    model: type[nn.Module] | nn.Module, held_out: Source, rows: int
) -> dict[str, Tensor] | str:
    """The inputs of `infer` from the held-out samples, or why there can be none."""
    signature = getattr(model, "signature", None)
    if not callable(getattr(model, "infer", None)) or not isinstance(signature, Signature):
        return "the model has no infer() with a signature"
    if signature.ragged != "refuse":
        return "its inputs are ragged"
    batch = held_out.take(torch.arange(min(rows, len(held_out), signature.max_batch_size)))
    inputs: dict[str, Tensor] = {}
    for spec in signature.inputs:
        dtype = _DTYPES.get(spec.datatype)
        if spec.name not in batch:
            return f"the held-out data has no {spec.name!r}, which infer() takes"
        if dtype is None:
            return f"input {spec.name!r} is of type {spec.datatype}"
        given, wanted = batch[spec.name].to(dtype), tuple(spec.shape)
        if given.ndim == 1 and wanted == (1,):
            given = given[:, None]  # a number a sample, for which the protocol has no shape
        inputs[spec.name] = given
        shape = tuple(given.shape[1:])
        fits = len(shape) == len(wanted) and all(
            want in (-1, have) for have, want in zip(shape, wanted, strict=True)
        )
        if not fits:
            raise BadPlugin(
                f"model.class: infer() takes {spec.name!r} as {wanted}, the held-out data gives "
                f"{shape}; make the two agree"
            )
    return inputs
