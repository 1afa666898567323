"""Makes versions that can be served: from a class, or from a checkpoint that is checked throughout.

Owns everything between a manifest and a model that answered once: lease, hashes, finiteness, probe,
warm-up. Runs in a background thread, beside traffic, and touches nothing that serves. Invariant: a
version that is returned has executed a batch of one row and a full one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backends.checkpoint import Cancelled, Corrupt, Manifest, ReaderLease, Run, read_tensors
from backends.checkpoint.reading import Pace
from backends.checkpoint.records import digest, read_bounded
from backends.checkpoint.tensors import empty, finite
from backends.claim import NotFinite, claimed, reason
from backends.errors import ModelFailed
from backends.llm.errors import BadTokenizer
from backends.model import ServedModel, import_class
from backends.reload_terms import Failure, LoadFailed, Stage, Target
from backends.tensor.memory import Uninitialised, free, host_room, room
from backends.tensor.probe import check_probe, warm_up
from backends.tensor.runner import Runner
from backends.tensor.texts import TextInput
from backends.tiers import Room, Tier, choose
from backends.wire import Signature

# Elements looked at in one go, beside traffic: a fraction of a millisecond.
FINITE_CHUNK = 1 << 20
TOKENIZER = "model/tokenizer.json"
# Of one text, where the model does not say.
MAX_TOKENS = 8192


@dataclass(slots=True, eq=False)
class Version:
    name: str
    model: ServedModel
    signature: Signature
    lease: ReaderLease | None = None
    # What another must have to be exchanged with it, and what its weights take.
    structure: str = ""
    bytes: int = 0
    # In the host's memory, from where it is exchanged with what is on the device. It runs nothing.
    shadow: bool = False
    # How it takes texts, if it does.
    text: TextInput | None = None

    def release(self) -> None:
        """Give up the claim on the checkpoint. Blocks on the disk."""
        if self.lease is not None:
            self.lease.release()

    def discard(self) -> None:
        """That, and the memory: nothing may run on it any more."""
        self.release()
        if isinstance(self.model, nn.Module):
            free([*self.model.parameters(), *self.model.buffers()])


class Loader:
    """`code` is the folder in which model classes are found. `holder` names the leases.

    `bytes_per_second` (0: no limit) holds for loads beside traffic; a first load has it all.
    `memory` is the most that all versions on the device may take together (None: what is free);
    `tier` an operator's choice of where the new one goes.
    """

    def __init__(
        self,
        *,
        code: Path,
        device: torch.device,
        runner: Runner,
        holder: str,
        bytes_per_second: int,
        memory: int | None = None,
        tier: Tier | None = None,
    ) -> None:
        self._code, self._device, self._runner = code, device, runner
        self._holder, self._rate = holder, bytes_per_second
        self._memory, self._tier = memory, tier
        # What the device serves; its replica says so.
        self.serving: Version | None = None

    def from_class(self, path: str, config: Mapping[str, Any]) -> Version:
        """Raises LoadFailed."""
        try:
            model = self._construct(path, config)
            return self._warm(Version("0-static", model, _signature(model)))
        except BaseException as error:  # a model's module may even raise SystemExit
            raise LoadFailed(Failure.REFUSED, reason(error)) from error

    def from_checkpoint(
        self,
        run: Run,
        target: Target,
        *,
        beside: bool,
        stage: Callable[[Stage], None],
        cancelled: Callable[[], bool],
    ) -> Version:
        """`beside`: another version serves meanwhile. Raises LoadFailed."""
        version, lease = claimed(
            run,
            target,
            self._holder,
            lambda manifest: self._leased(run, target, manifest, beside, stage, cancelled),
        )
        version.lease = lease
        return version

    def _leased(
        self,
        run: Run,
        target: Target,
        manifest: Manifest,
        beside: bool,
        stage: Callable[[Stage], None],
        cancelled: Callable[[], bool],
    ) -> Version:
        tier = self._choose(manifest)
        shadow = tier is Tier.EXCHANGE
        stage(Stage.LOAD)
        own = {name: empty(record.shape, record.dtype) for name, record in manifest.tensors.items()}
        try:
            tensors = read_tensors(
                run.folder(target.step),
                manifest,
                into=own,
                pace=Pace((self._rate or None) if beside else None, cancelled),
            )
            config = manifest.model.get("config") or {}
            model = self._construct(manifest.model["class"], config, tensors, shadow=shadow)
            stage(Stage.VERIFY)
            if isinstance(model, nn.Module):
                _check_finite(model, beside)
            version = Version(
                target.version,
                model,
                _signature(model),
                structure=manifest.structure_id,
                bytes=_size(manifest),
                shadow=shadow,
                text=_text_input(model, run.folder(target.step), manifest),
            )
            version = self._verified(version, manifest)
            if cancelled():
                raise Cancelled("another version is wanted")
        except BaseException:
            free(own.values())
            raise
        return version

    def _choose(self, manifest: Manifest) -> Tier:
        """Raises NoRoom."""
        needed, serving, apart = _size(manifest), self.serving, self._device.type != "cpu"
        held = serving.bytes if serving is not None else 0
        on_device = room(self._device)
        if self._memory is not None:
            on_device = min(on_device, self._memory - held)
        alike = serving is not None and serving.structure == manifest.structure_id
        tier = self._tier if serving is not None else None
        return choose(needed, held, Room(on_device, host_room(), apart), alike=alike, wanted=tier)

    def _verified(self, version: Version, manifest: Manifest) -> Version:
        if manifest.probe is not None:
            runner = self._runner_of(version)
            check_probe(runner, version.model, version.signature, manifest.probe)
        return self._warm(version)

    def _runner_of(self, version: Version) -> Runner:
        return self._runner.on_host() if version.shadow else self._runner

    def _construct(
        self,
        path: str,
        config: Mapping[str, Any],
        tensors: dict[str, torch.Tensor] | None = None,
        *,
        shadow: bool = False,
    ) -> ServedModel:
        kind = import_class(path, root=self._code)
        with Uninitialised() if tensors is not None else nullcontext():
            model = kind(**config)
        if tensors is not None:
            if not hasattr(model, "load_state_dict"):
                raise ModelFailed(f"{path} has no load_state_dict: it cannot take a checkpoint")
            # The tensors become the parameters: no copy. They are this version's own.
            assign = {"assign": True} if isinstance(model, nn.Module) else {}
            model.load_state_dict(tensors, **assign)
        if isinstance(model, nn.Module):
            model = model.eval().requires_grad_(False)
            if not shadow:
                model = model.to(self._device)
        if not isinstance(model, ServedModel):
            missing = "infer" if hasattr(model, "signature") else "signature"
            raise ModelFailed(f"{path} has no {missing}; see backends.model.ServedModel")
        return model

    def _warm(self, version: Version) -> Version:
        warm_up(self._runner_of(version), version.model, version.signature)
        return version


def _signature(model: ServedModel) -> Signature:
    signature = model.signature
    if not isinstance(signature, Signature):
        raise ModelFailed(f"signature is {type(signature).__name__}, not a backends.wire.Signature")
    if not signature.inputs or not signature.outputs:
        raise ModelFailed("the signature has no inputs or no outputs")
    return signature


def _check_finite(model: nn.Module, beside: bool) -> None:
    """Parameters only: buffers may hold the infinities of a mask. Beside traffic, at half speed."""
    for name, parameter in model.named_parameters():
        for chunk in torch.split(parameter.detach().reshape(-1), FINITE_CHUNK):
            began = time.monotonic()
            if not finite(chunk):
                raise NotFinite(f"parameter {name} holds NaN or infinity")
            if beside:
                time.sleep(time.monotonic() - began)


def _text_input(model: ServedModel, folder: Path, manifest: Manifest) -> TextInput | None:
    """A model that takes tokens says of which input with `reads_text`, and how many at most with
    `max_length`; the checkpoint has the tokenizer. Raises BadRecord, Corrupt, BadTokenizer."""
    name = getattr(model, "reads_text", None)
    if name is None:
        return None
    record = manifest.files.get(TOKENIZER)
    if record is None:
        return None
    data = read_bounded(folder / TOKENIZER, record.bytes)
    if data is None or digest(data) != record.xxh3:
        raise Corrupt(TOKENIZER, f"xxh3 {record.xxh3}", "nothing" if data is None else digest(data))
    signature = _signature(model)
    (width,) = signature.outputs[0].shape
    most = int(getattr(model, "max_length", MAX_TOKENS))
    return TextInput(_encoder(data), name, width, most, signature.max_batch_size)


def _encoder(data: bytes) -> Callable[[str], list[int]]:
    """Raises BadTokenizer."""
    from tokenizers import Tokenizer

    try:
        library = Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise BadTokenizer(f"tokenizer.json cannot be read: {error}") from error
    # Never truncated or padded in silence, whatever the file says.
    library.no_truncation()
    library.no_padding()
    return lambda text: list(library.encode(text).ids)


def _size(manifest: Manifest) -> int:
    """Bytes of the weights."""
    return sum(record.end - record.start for record in manifest.tensors.values())
