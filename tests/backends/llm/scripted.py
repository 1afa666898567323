"""Tokenizers, text models and an engine with a script, for the tests of the text side."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from backends.llm.generation import EngineLoad, Generation, Logprob, Output
from backends.llm.machine import Emit
from backends.llm.structured.grammars import Grammars
from backends.llm.structured.vocabulary import Vocabulary
from backends.llm.surfaces.setting import Setting
from backends.llm.template import ChatTemplate
from backends.llm.text import TextModel
from backends.llm.tokenizer import Tokenizer as Ours
from backends.llm.tokenizer import byte_letters

EOS = "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HERMES = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }} Say <tool_call>…</tool_call>"
    "<|im_end|>\n{% endif %}" + CHATML
)
MERGES = ("th", "the", "in", "an", "er", "on", "re", "at", "ing", "é", "日", "ab", "abc", '":')

LLAMA = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }} Say "
    '{"name": …, "parameters": …}, or <|python_tag|>.<|im_end|>\n{% endif %}' + CHATML
)


def byte_level() -> Tokenizer:
    """All bytes, some merges, some special tokens and one added token that is text."""
    letters = {byte: letter for letter, byte in byte_letters().items()}
    vocabulary = {letters[byte]: byte for byte in range(256)}
    merges = []
    for text in MERGES:
        spelt = "".join(letters[byte] for byte in text.encode())
        for end in range(2, len(spelt) + 1):
            if spelt[:end] not in vocabulary:
                vocabulary[spelt[:end]] = len(vocabulary)
                merges.append((spelt[: end - 1], spelt[end - 1]))
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>", "<|im_start|>", EOS])
    library.add_tokens([AddedToken("<think>", normalized=False)])
    return library


def sentencepiece() -> Tokenizer:
    """As Llama 2 has it: words begin with ▁, and bytes stand in for what there is no piece for."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", "▁the", "▁a", "s", "t", "h", "e", "a", "b", "é", "▁▁"]
    merges = [("▁", "a"), ("▁", "▁")]
    library = Tokenizer(
        models.BPE(
            vocab={piece: id for id, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    return library


def ours(library: Tokenizer) -> Ours:
    return Ours(library.to_str().encode())


def text_model(template: str | None = CHATML, max_context: int = 256) -> TextModel:
    tokenizer = ours(byte_level())
    stop_ids = frozenset([tokenizer.id_of(EOS) or 0])
    size = len(tokenizer.pieces)
    return TextModel(
        tokenizer=tokenizer,
        template=ChatTemplate(template, {"eos_token": EOS}, None) if template else None,
        stop_ids=stop_ids,
        max_context=max_context,
        vocabulary=Vocabulary(tokenizer.pieces, size, stop_ids),
    )


def setting() -> Setting:
    return Setting("m", Grammars())


def write_model(folder: Path, template: str = CHATML, added: str = "", **config: Any) -> None:
    """The text files of a checkpoint's model/ folder. `added` is a token that others lack."""
    library = byte_level()
    library.add_tokens([added] if added else [])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(library.to_str())
    described = {"eos_token": EOS, "chat_template": template}
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps(described))
    size = {"vocab_size": library.get_vocab_size(with_added_tokens=True)}
    (folder / "config.json").write_bytes(orjson.dumps({**size, **config}))


# (generation) → what each choice says, as text; the end of the text is the end of the choice
Script = Callable[[Generation], Sequence[str]]


class ScriptedEngine:
    """A `GenerationEngine` that takes a token of every choice at each `step`. Masks are asked and
    told, so a script that is against one fails. Ends with "length" at max_tokens, else "stop"."""

    def __init__(self, text: TextModel, script: Script | str, emit: Emit | None = None) -> None:
        self._text = text
        self._script = script if callable(script) else lambda generation: [script] * generation.n
        self.emit = emit or (lambda outputs: None)
        self.submitted: list[Generation] = []
        self.cancelled: list[Hashable] = []
        self.refusal: Exception | None = None
        self.cached, self.version = 0, "1-a"
        self._left: dict[Hashable, list[list[int] | None]] = {}
        self._generations: dict[Hashable, Generation] = {}
        self._made: dict[tuple[Hashable, int], int] = {}
        self._masks: dict[tuple[Hashable, int], Any] = {}
        # What is told of choices that were cancelled.
        self._late: list[Output] = []
        self._lock = threading.Lock()

    @property
    def max_context(self) -> int:
        return self._text.max_context

    def submit(self, generation: Generation) -> None:
        if self.refusal is not None:
            raise self.refusal
        encode = self._text.tokenizer.encode
        says = [encode(text, special=False) for text in self._script(generation)]
        with self._lock:
            self.submitted.append(generation)
            self._generations[generation.key] = generation
            self._left[generation.key] = [*says[: generation.n]]

    def cancel(self, key: Hashable, choice: int | None = None) -> None:
        with self._lock:
            self.cancelled.append(key if choice is None else (key, choice))
            if choice is None:
                self._left.pop(key, None)
            elif key in self._left and self._left[key][choice] is not None:
                self._left[key][choice] = None
                self._late.append(Output(key, choice, [], "cancelled"))

    def load(self) -> EngineLoad:
        return EngineLoad(
            running=len(self._left),
            waiting=0,
            prompt_tokens=0,
            output_tokens=0,
            pages_free=10,
            pages_cached=0,
            pages_total=10,
            prefill_rate=0.0,
            decode_rate=0.0,
            hit_tokens=0,
            prompt_total=0,
        )

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def step(self, tokens: int = 1) -> None:
        """So many tokens of each choice, in one list of outputs."""
        with self._lock:
            outputs, self._late = self._late, []
            for key in list(self._left):
                for choice in range(len(self._left[key])):
                    outputs += self._advance(key, choice, tokens)
                if all(left is None for left in self._left[key]):
                    del self._left[key]
        if outputs:
            self.emit(outputs)

    def end(self, finish: str, error: str = "") -> None:
        """Everything that runs ends so."""
        outputs = []
        with self._lock:
            for key, choices in self._left.items():
                for choice, left in enumerate(choices):
                    if left is not None:
                        outputs.append(Output(key, choice, [], finish, error=error))
            self._left.clear()
        self.emit(outputs)

    def finish(self) -> None:
        while self.busy:
            self.step()

    def _advance(self, key: Hashable, choice: int, tokens: int) -> list[Output]:
        left = self._left[key][choice]
        if left is None:
            return []
        generation = self._generations[key]
        sampling = generation.sampling
        made = self._made.get((key, choice), 0)
        taken = left[: min(tokens, sampling.max_tokens - made)]
        self._made[key, choice] = made + len(taken)
        ended = self._masked(generation, choice, taken)
        rest = left[len(taken) :]
        finish = "stop" if ended or not rest else None
        if made + len(taken) >= sampling.max_tokens and not ended:
            finish = "length"
        self._left[key][choice] = rest if finish is None else None
        logprobs = None
        if sampling.logprobs is not None:
            top = tuple((token, -float(token)) for token in range(sampling.logprobs))
            logprobs = [Logprob(token, -0.5, top) for token in taken]
        prompt = None
        if generation.prompt_logprobs and not made:
            prompt = [None, *(Logprob(token, -1.0, ()) for token in generation.prompt[1:])]
        return [Output(key, choice, taken, finish, logprobs, self.cached, self.version, "", prompt)]

    def _masked(self, generation: Generation, choice: int, taken: Sequence[int]) -> bool:
        if generation.mask is None:
            return False
        mask = self._masks.setdefault((generation.key, choice), generation.mask())
        for token in taken:
            words: Any = mask.allowed()
            assert words[token // 32] >> np.uint32(token % 32) & 1, "the script breaks the mask"
            if mask.accept(token):
                return True
        return False


class FakeConnection:
    """What `Calls` sees of a gateway."""

    def __init__(self) -> None:
        self.paused = False
        self.sent: list[bytes] = []
        self.faults: dict[int, Any] = {}
        self._waiting: list[Callable[[], None]] = []

    def send(self, buffers: Sequence[Any]) -> None:
        self.sent.append(b"".join(bytes(buffer) for buffer in buffers))

    def fault(self, id: int, fault: Any) -> None:
        assert id not in self.faults
        self.faults[id] = fault

    def once_writable(self, callback: Callable[[], None]) -> None:
        self._waiting.append(callback)

    def resume(self) -> None:
        self.paused = False
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()


async def turn() -> None:
    await asyncio.sleep(0)
