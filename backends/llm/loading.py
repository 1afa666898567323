"""Makes versions of a language model that can be served, each checked before it serves anyone.

Owns everything between a manifest and a version that has answered once: its text files, its
weights, its network beside the one that serves, the probe, the warm-up. Runs in a background
thread. Invariant: a version that is returned has generated, from logits that were finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backends.checkpoint import Cancelled, Corrupt, Manifest, ReaderLease, Run
from backends.checkpoint.records import digest
from backends.claim import ProbeMismatch, claimed
from backends.errors import ModelFailed
from backends.llm.machine import Machine
from backends.llm.text import TextModel
from backends.reload_terms import Stage, Target
from backends.tiers import NoRoom

if TYPE_CHECKING:
    from backends.llm.network import Network

# What is generated before a version serves: a prompt's step, then steps of one token.
WARM_PROMPT, WARM_TOKENS = 16, 4
MAX_TEXT_FILE = 256 << 20


class Twin(NamedTuple):
    """A network in the host's memory, because the device has no room for a second one, and with
    what it is tried there."""

    network: Network
    trial: Machine


# (folder of the step, manifest, bytes per second, whether it is cancelled) → the network
ReadNetwork = Callable[[Path, Manifest, "int | None", Callable[[], bool]], "Network | Twin"]


@dataclass(slots=True, eq=False)
class LlmVersion:
    name: str
    text: TextModel
    lease: ReaderLease | None = None
    # Its weights in the host's memory, from where they are exchanged with what the device serves.
    twin: Network | None = None

    def release(self) -> None:
        """Give up the claim on the checkpoint. Blocks on the disk."""
        if self.lease is not None:
            self.lease.release()

    def discard(self) -> None:
        """The engine has let go of the network already, and of its memory with it."""
        self.release()


class LlmLoader:
    """`bytes_per_second` (0: no limit) holds for loads beside traffic; a first load has it all."""

    def __init__(
        self, read: ReadNetwork, machine: Machine, *, holder: str, bytes_per_second: int
    ) -> None:
        self._read, self._machine = read, machine
        self._holder, self._rate = holder, bytes_per_second
        # Of the versions that it made: what waits for one of them may be answered by the next.
        self._tokens = ""

    def from_checkpoint(
        self,
        run: Run,
        target: Target,
        *,
        beside: bool,
        stage: Callable[[Stage], None],
        cancelled: Callable[[], bool],
    ) -> LlmVersion:
        """`beside`: another version serves meanwhile. Raises LoadFailed."""

        def make(manifest: Manifest) -> LlmVersion:
            folder = run.folder(target.step)
            check_files(folder, manifest)
            stage(Stage.LOAD)
            rate = (self._rate or None) if beside else None
            network = self._read(folder, manifest, rate, cancelled)
            stage(Stage.VERIFY)
            return self._verified(target.version, folder, manifest, network, cancelled)

        version, lease = claimed(run, target, self._holder, make)
        version.lease = lease
        return version

    def _verified(
        self,
        name: str,
        folder: Path,
        manifest: Manifest,
        made: Network | Twin,
        cancelled: Callable[[], bool],
    ) -> LlmVersion:
        twin = made if isinstance(made, Twin) else None
        network, machine = made if isinstance(made, Twin) else (made, self._machine)
        machine.add(name, network)
        try:
            text = TextModel.load(folder / "model", self._machine.engine.max_context)
            if text.vocabulary.size != network.vocabulary:
                raise ModelFailed(
                    f"config.json has vocab_size {text.vocabulary.size}, the weights "
                    f"{network.vocabulary}"
                )
            if self._tokens not in ("", text.identity):
                raise NoRoom("its tokenizer is not that of the version before it", alone=True)
            self._probe(machine, name, manifest, cancelled)
            self._warm_up(machine, name, text, cancelled)
            if cancelled():
                raise Cancelled("another version is wanted")
        except BaseException:
            machine.withdraw(name)
            raise
        self._tokens = text.identity
        if twin is None:
            return LlmVersion(name, text)
        machine.withdraw(name)
        return LlmVersion(name, text, twin=twin.network)

    def _probe(
        self, machine: Machine, name: str, manifest: Manifest, cancelled: Callable[[], bool]
    ) -> None:
        """{"prompt": token ids} → {"tokens": greedy ones, "logprobs": theirs}."""
        probe = manifest.probe
        if probe is None:
            return
        prompt, expected = probe.inputs.get("prompt"), probe.outputs.get("tokens")
        if not _is_tokens(prompt) or not _is_tokens(expected):
            raise ModelFailed("the probe of a language model has a prompt and tokens, as ids")
        assert prompt is not None and expected is not None
        tokens, logprobs = machine.ask(name, prompt, len(expected), cancelled)
        wanted: list[Any] = list(probe.outputs.get("logprobs", logprobs))
        near = len(wanted) == len(logprobs) and all(
            math.isclose(found, value, rel_tol=probe.rtol, abs_tol=probe.atol)
            for found, value in zip(logprobs, wanted, strict=True)
        )
        if tokens != expected or not near:
            raise ProbeMismatch(
                "the model does not generate what it did when the probe was written"
            )

    def _warm_up(
        self, machine: Machine, name: str, text: TextModel, cancelled: Callable[[], bool]
    ) -> None:
        usual = [id for id, piece in enumerate(text.tokenizer.pieces) if piece] or [0]
        room = max(1, min(WARM_PROMPT, text.max_context - WARM_TOKENS))
        prompt = [usual[at % len(usual)] for at in range(room)]
        tokens = min(WARM_TOKENS, text.max_context - room)
        machine.ask(name, prompt, max(tokens, 1), cancelled)


def check_files(folder: Path, manifest: Manifest) -> None:
    """The files that are no tensors, against their hashes. Raises Corrupt or OSError."""
    shards = {record.file for record in manifest.tensors.values()}
    for path, record in manifest.files.items():
        if path in shards or not path.startswith("model/") or record.bytes > MAX_TEXT_FILE:
            continue
        data = (folder / path).read_bytes()
        if digest(data) != record.xxh3:
            raise Corrupt(path, record.xxh3, digest(data))


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)
