"""The probe of imported weights: small inputs, and what the model that they make answers to them.

Owns the inputs and how near an answer must be. The answers come from the staged files, read back,
through the model as the trainer has it, on the CPU: a replica that answers otherwise has other
numbers or other arithmetic. Of a language model: see `backends.models.certain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from backends.checkpoint import Probe
from backends.checkpoint.tensors import finite
from backends.importing.blueprint import Blueprint
from backends.importing.material import ImportFailed
from backends.model import import_class
from backends.models.certain import decoder_probe
from backends.models.decoder import Decoder
from backends.models.efficientnet import EfficientNetLite
from backends.models.embedder import BertEmbedder
from backends.tensor.probe import ramp

# What any language model goes on with in one way only, if it has learned anything.
PROMPTS = ("1 2 3 4 5 6 7 8 9 10", "The capital of France is", "a b c d e f g h i j")
TEXTS = ("The gate that meters water into turbines.", "A cheetah chases its prey.")
# (rtol, atol) of embeddings and of probabilities. GPUs round convolutions to ten bits.
FINE, COARSE = (2e-2, 2e-4), (1e-1, 1e-2)
# Bytes of an image that has a structure: place · step, modulo a prime.
RAMP = {"step": 7, "modulus": 251}


def make_probe(plan: Blueprint, folder: Path, files: Mapping[str, bytes]) -> Probe | None:
    """Of the weights in `folder`, a staged model/; `files` has the tokenizer. None where there is
    nothing that the model could be asked, or nothing that it is sure of. Raises ImportFailed."""
    model = _model(plan, folder)
    with torch.inference_mode():
        if isinstance(model, Decoder):
            return decoder_probe(model, _encoded(files, PROMPTS, model.config.vocabulary))
        if isinstance(model, EfficientNetLite):
            image = ramp((1, *model.signature.inputs[0].shape), torch.uint8, RAMP)
            return _of_tensors(plan, {"image": RAMP}, model.infer(image))
        assert isinstance(model, BertEmbedder)
        known = model.embeddings.word_embeddings.num_embeddings
        texts = _encoded(files, TEXTS, known)
        most = min(map(len, texts), default=0)
        if not most:
            return None
        rows = torch.tensor([ids[:most] for ids in texts])
        lengths = torch.full((len(rows),), most)
        return _of_tensors(plan, {"input_ids": rows.tolist()}, model.infer(rows, lengths))


def _model(plan: Blueprint, folder: Path) -> nn.Module:
    """Over the bytes of the files: they are mapped, not copied."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    tensors |= {alias: tensors[name] for alias, name in plan.ties.items()}
    with torch.device("meta"):
        model: nn.Module = import_class(plan.class_)(**plan.config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _encoded(files: Mapping[str, bytes], texts: Sequence[str], known: int) -> list[list[int]]:
    """Those texts of which the model knows all tokens. Raises ImportFailed."""
    try:
        library = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises bare Exception
        raise ImportFailed(f"tokenizer.json cannot be read: {error}") from error
    library.no_truncation()
    library.no_padding()
    found = [library.encode(text).ids for text in texts]
    return [ids for ids in found if ids and max(ids) < known]


def _of_tensors(
    plan: Blueprint, inputs: Mapping[str, object], outputs: Mapping[str, Tensor]
) -> Probe | None:
    if not all(finite(value) for value in outputs.values()):
        return None  # a replica will say so by its own check
    narrow = any(dtype.itemsize == 2 for _, dtype in plan.tensors.values())
    rtol, atol = COARSE if narrow else FINE
    return Probe(inputs, {name: value.tolist() for name, value in outputs.items()}, rtol, atol)
