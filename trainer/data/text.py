"""Texts for language models: `class = "trainer.data:Text"` packs them, `"trainer.data:Chat"`
renders conversations with the tokenizer's template.

Owns the cut of token streams into samples {"tokens": [T]} and, for conversations, {"labels": [T]},
as `backends.models.decoder` takes them. Nothing is padded or lost in packing but the last, short
piece of a stream.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.batches import Batch
from trainer.data.corpus import Corpus, Streams, Tokens, jsonl, matching
from trainer.data.tokenizer import Vocabulary, check_name, folder_of, from_folder
from trainer.errors import BadPlugin

CACHE = ".cache/tokens"
# What a label is where nothing is asked (`backends.models.decoder.IGNORE`).
IGNORE = -100


class Text:
    """Files of text, or .jsonl files with a "text" in each line, as sequences of `length` tokens.

    `files` are patterns from the working directory, `tokenizer` is "bytes", "bpe:SIZE" (trained on
    these texts) or a folder with a tokenizer.json. `held_out` is the share of documents that are.
    """

    def __init__(
        self,
        files: Sequence[str],
        length: int,
        tokenizer: str = "bytes",
        held_out: float = 0.02,
        cache: str = CACHE,
    ) -> None:
        if not isinstance(length, int) or length < 2:
            raise BadPlugin("data.config.length: expected a number of tokens from 2")
        if not 0 < held_out < 1:
            raise BadPlugin("data.config.held_out: expected a share above 0 and below 1")
        check_name(tokenizer)
        self._length = length
        self._corpus = Corpus(matching(files), tokenizer, held_out, Path(cache))

    def train(self) -> Packed:
        return Packed(self._corpus, "train", self._length)

    def held_out(self) -> Packed:
        return Packed(self._corpus, "held_out", self._length)

    def files(self) -> Mapping[str, bytes]:
        """The tokenizer's, which are published beside the weights."""
        return self._corpus.streams().files


class Packed:
    """One stream cut into sequences of equal length; its end, if shorter, is left out."""

    def __init__(self, corpus: Corpus, part: str, length: int) -> None:
        self._corpus, self._part, self._length = corpus, part, length

    @property
    def tokens_per_sample(self) -> int:
        return self._length

    @property
    def fingerprint(self) -> str:
        return self._streams.fingerprint

    @property
    def vocabulary(self) -> int | None:
        """None where a folder's tokenizer may have tokens that no text has."""
        return self._streams.vocabulary if self._corpus.own else None

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def take(self, indices: Tensor) -> Batch:
        rows = indices.numpy()[:, None] * self._length + np.arange(self._length)
        return {"tokens": torch.from_numpy(self._tokens[rows].astype(np.int64))}

    @property
    def _streams(self) -> Streams:
        return self._corpus.streams()

    @property
    def _tokens(self) -> Tokens:
        return self._streams.parts[self._part]


@dataclass(frozen=True, slots=True)
class Talk:
    """A rendered conversation: its tokens, and which of them the model is to say."""

    tokens: NDArray[np.int64]
    said: NDArray[np.bool_]


class Chat:
    """Conversations from .jsonl files, {"messages": [{"role": …, "content": …}, …]} a line.

    The model learns to say what the assistant says. `tokenizer` is a folder with a tokenizer.json
    and a chat template. Longer conversations than `length` tokens are refused; without `held_out`
    files, every `held_out_every`-th line is held out.
    """

    def __init__(
        self,
        files: Sequence[str],
        tokenizer: str,
        length: int,
        held_out: Sequence[str] = (),
        held_out_every: int = 10,
    ) -> None:
        check_name(tokenizer)
        self._vocabulary = from_folder(folder_of(tokenizer))
        render = _renderer(self._vocabulary)
        talks = _talks(matching(files), self._vocabulary, render, length)
        if held_out:
            rest = _talks(matching(held_out, "held_out"), self._vocabulary, render, length)
        else:
            rest = talks[held_out_every - 1 :: held_out_every]
            del talks[held_out_every - 1 :: held_out_every]
        end = self._vocabulary.end
        self._train, self._held_out = Talks(talks, end), Talks(rest, end)

    def train(self) -> Talks:
        return self._train

    def held_out(self) -> Talks:
        return self._held_out

    def files(self) -> Mapping[str, bytes]:
        return self._vocabulary.files


class Talks:
    """Conversations, padded to the longest of a batch."""

    def __init__(self, talks: Sequence[Talk], end: int) -> None:
        self._talks, self._end = list(talks), end
        self._said = np.asarray([int(talk.said[1:].sum()) for talk in talks], np.float64)
        digest = xxhash.xxh3_64()
        for talk in talks:
            digest.update(talk.tokens.tobytes() + talk.said.tobytes())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._talks)

    @property
    def vocabulary(self) -> int:
        return 1 + max((int(talk.tokens.max()) for talk in self._talks), default=0)

    @property
    def longest(self) -> int:
        return max((len(talk.tokens) for talk in self._talks), default=0)

    @property
    def tokens_per_sample(self) -> float:
        return sum(len(talk.tokens) for talk in self._talks) / max(1, len(self._talks))

    def weights(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """How many tokens of each are asked for: what the mean of the loss is over."""
        return self._said[indices]

    def take(self, indices: Tensor) -> Batch:
        chosen = [self._talks[index] for index in indices.tolist()]
        longest = max(len(talk.tokens) for talk in chosen)
        tokens = np.full((len(chosen), longest), self._end, np.int64)
        labels = np.full((len(chosen), longest), IGNORE, np.int64)
        for row, talk in enumerate(chosen):
            tokens[row, : len(talk.tokens)] = talk.tokens
            labels[row, : len(talk.tokens)] = np.where(talk.said, talk.tokens, IGNORE)
        return {"tokens": torch.from_numpy(tokens), "labels": torch.from_numpy(labels)}


def _renderer(vocabulary: Vocabulary) -> Any:
    """With what `transformers` offers to templates, and replicas too (`backends.llm.template`)."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    source = vocabulary.chat_template()
    if source is None:
        raise BadPlugin("data.config.tokenizer: it has no chat template; use trainer.data:Text")

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = time.strftime
    settings = vocabulary.settings()
    special = {name: _content(settings.get(name)) for name in ("bos_token", "eos_token")}

    def render(messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str:
        try:
            template = environment.from_string(source)
            return template.render(messages=messages, add_generation_prompt=prompt, **special)
        except TemplateError as error:
            raise BadPlugin(f"data.config: the chat template refuses a line: {error}") from error

    return render


def _content(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _talks(files: Sequence[Path], vocabulary: Vocabulary, render: Any, length: int) -> list[Talk]:
    found: list[Talk] = []
    for file in files:
        for number, messages in enumerate(jsonl(file, _messages), 1):
            talk = _tokenised(messages, vocabulary, render)
            if len(talk.tokens) > length:
                raise BadPlugin(
                    f"{file}: conversation {number} has {len(talk.tokens)} tokens, more than "
                    f"data.config.length = {length}"
                )
            found.append(talk)
    return found


def _messages(line: Any) -> list[dict[str, str]] | None:
    messages = line.get("messages") if isinstance(line, dict) else None
    if not isinstance(messages, list) or not messages:
        return None
    fine = all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in messages
    )
    return messages if fine and any(m["role"] == "assistant" for m in messages) else None


def _tokenised(messages: Sequence[Mapping[str, str]], vocabulary: Vocabulary, render: Any) -> Talk:
    """By the text before and after each answer, so that it holds for any template that only
    appends. The end of turn, which an answer must learn to say, belongs to it."""
    tokens: list[int] = []
    said: list[bool] = []
    text = ""

    def append(until: str, spoken: bool) -> None:
        nonlocal text
        if not until.startswith(text):
            raise BadPlugin("data.config.tokenizer: its chat template rewrites earlier turns")
        ids = vocabulary.tokenizer.encode(until[len(text) :], add_special_tokens=False).ids
        tokens.extend(ids)
        said.extend([spoken] * len(ids))
        text = until

    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            append(render(messages[:index], prompt=True), False)
            append(render(messages[: index + 1], prompt=False), True)
    return Talk(np.asarray(tokens, np.int64), np.asarray(said, np.bool_))
