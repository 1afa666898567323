"""Where a training starts from: a published version, or a folder as Hugging Face has it.

Owns the reading of the weights, each rank its own part, and what belongs to them: class and
configuration of the model, tokenizer files, and a hash of every byte that is read. Invariant: a
tensor that the model has and the files have not is an error, unless it is an update's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import torch
import xxhash
from torch import Tensor, nn

from trainer.data.tokenizer import read_files
from trainer.errors import BadPlugin
from trainer.lora import A, B
from trainer.shards import local, place

DECODER = "backends.models.decoder:Decoder"
_RUN = re.compile(r"(?P<folder>.+?)(@(?P<which>[A-Za-z0-9._-]+))?")
# Of a config.json, what only describes the file.
_NOTES = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Source:
    """`folder` holds model-….safetensors and a tokenizer's files."""

    folder: Path
    class_: str
    config: Mapping[str, Any]
    name: str = ""
    _files: list[Path] = field(default_factory=list)
    run: Path | None = None
    step: int = 0
    pinned: bool = False  # whether the step was named

    @cached_property
    def fingerprint(self) -> str:
        """Of all weights."""
        digest = xxhash.xxh3_128()
        for file in self._files:
            with file.open("rb") as data:
                while chunk := data.read(1 << 24):
                    digest.update(chunk)
        return digest.hexdigest()

    def tokenizer_files(self) -> dict[str, bytes]:
        return read_files(self.folder)

    def fill(self, model: nn.Module, ties: Mapping[str, str]) -> None:
        """Overwrites this rank's part of each tensor of the model. `ties` are the whole model's.

        Raises BadPlugin for tensors that are missing or of another shape.
        """
        from safetensors import safe_open

        where: dict[str, Any] = {}
        opened = [safe_open(file, "pt") for file in self._files]
        for handle in opened:
            where |= dict.fromkeys(handle.keys(), handle)  # type: ignore[no-untyped-call]
        aliases: dict[str, list[str]] = {}
        for alias, name in ties.items():
            aliases.setdefault(name, []).append(alias)
        tensors = {**dict(model.named_parameters()), **_kept_buffers(model)}
        for name, tensor in tensors.items():
            stored = next((n for n in (name, *aliases.get(name, ())) if n in where), None)
            if stored is not None:
                _copy(tensor, where[stored].get_slice(stored), f"{self.name}: {stored}")
            elif not name.endswith((A, B)):
                raise BadPlugin(f"model.init: {self.name} has no tensor {name!r}")


def _kept_buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _copy(tensor: Tensor, stored: Any, what: str) -> None:
    shape = tuple(stored.get_shape())
    if shape != tuple(tensor.shape):
        raise BadPlugin(f"model.init: {what} is {shape}, the model has {tuple(tensor.shape)}")
    part = local(tensor)
    if part.numel():
        with torch.no_grad():
            part.copy_(stored[place(tensor).slices] if shape else stored[...])


def open_source(text: str) -> Source:
    """`text` is a folder of Hugging Face's form, or a run, with "@CHANNEL" or "@STEP" if it is not
    to be "@stable" or else the newest. Raises BadPlugin."""
    match = _RUN.fullmatch(text)
    assert match is not None
    folder = Path(match["folder"]).expanduser()
    if (folder / "ckpt").is_dir():
        return _published(folder, match["which"], text)
    if match["which"] or not (folder / "config.json").is_file():
        raise BadPlugin(
            f"model.init: {text!r} is neither a run (it has no ckpt/) nor a model's folder (it has "
            "no config.json)"
        )
    config = orjson.loads((folder / "config.json").read_bytes())
    from backends.models.config import DecoderConfig, UnsupportedModel

    try:
        DecoderConfig.parse(config)
    except UnsupportedModel as error:
        raise BadPlugin(f"model.init: {folder}/config.json: {error}") from error
    kept = {name: value for name, value in config.items() if name not in _NOTES}
    return Source(folder, DECODER, kept, text, _weights(folder))


def _published(folder: Path, which: str | None, text: str) -> Source:
    from backends.checkpoint import CheckpointError, Run, read_channel, verify

    run = Run(folder)
    steps = run.steps()
    try:
        if which is not None and which.isdigit():
            step = int(which)
        else:
            channel = read_channel(run, which or "stable")
            if which and channel is None:
                raise BadPlugin(f"model.init: {folder} has no channel {which!r}")
            if channel is None and not steps:
                raise BadPlugin(f"model.init: nothing is committed in {folder} yet")
            step = channel.step if channel is not None else steps[-1]
        manifest = verify(run, step)
    except CheckpointError as error:
        raise BadPlugin(f"model.init: {text}: {error}") from error
    inside = run.folder(step) / "model"
    model, pinned = manifest.model, which is not None and which.isdigit()
    files = _weights(inside)
    return Source(inside, str(model["class"]), model["config"], text, files, folder, step, pinned)


def _weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadPlugin(f"model.init: there is no *.safetensors in {folder}")
    return files
