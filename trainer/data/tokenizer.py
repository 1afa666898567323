"""Tokenizers: bytes, a byte-level BPE trained on the corpus, or the one of a model's folder.

Each is a `tokenizers.Tokenizer`, so that what was trained with is what a replica, or transformers,
loads from the published files. Invariant: equal files give equal tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from trainer.errors import BadPlugin

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Ends every document; a vocabulary that we make has no other special token.
END = "<|end|>"
BPE = re.compile(r"bpe:(\d+)")
# What belongs to a tokenizer in a Hugging Face folder, and so beside the weights that we publish.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer and what is published with it. `end` is the token after each document."""

    tokenizer: Tokenizer
    end: int
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def size(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def settings(self) -> Mapping[str, Any]:
        """tokenizer_config.json."""
        found: dict[str, Any] = orjson.loads(self.files.get("tokenizer_config.json", b"{}"))
        return found

    def chat_template(self) -> str | None:
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode()
        template = self.settings().get("chat_template")
        return template if isinstance(template, str) else None


def check_name(name: str) -> None:
    """Raises BadPlugin for what names no tokenizer."""
    match = BPE.fullmatch(name)
    if match and not 257 < int(match[1]) <= 2**20:
        raise BadPlugin(f"data.config.tokenizer: {name!r} must have 258 to {2**20} tokens")
    if not match and name != "bytes" and not _file(name).is_file():
        raise BadPlugin(
            f'data.config.tokenizer: expected "bytes", "bpe:4096" (trained on these texts), or a '
            f"folder with a tokenizer.json; there is none at {name!r}"
        )


def open_vocabulary(name: str, texts: Iterable[str]) -> Vocabulary:
    """`texts` are what a new BPE is trained on; of a folder's tokenizer they are not read."""
    match = BPE.fullmatch(name)
    if match:
        return made(train_bpe(texts, int(match[1])))
    if name == "bytes":
        return made(train_bpe((), 257))
    return from_folder(_file(name).parent)


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte-level BPE (Sennrich et al., 2016; on bytes as GPT-2 has it): no text is unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(END, special=True)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def made(tokenizer: Tokenizer) -> Vocabulary:
    """With the files that transformers needs to load it."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END}
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": orjson.dumps(settings, option=orjson.OPT_INDENT_2),
    }
    end = tokenizer.token_to_id(END)
    assert end is not None  # the trainer was told of it
    return Vocabulary(tokenizer, end, files)


def from_folder(folder: Path) -> Vocabulary:
    """Raises BadPlugin when it says of no token that it ends a text."""
    from tokenizers import Tokenizer

    files = read_files(folder)
    try:
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        settings = orjson.loads(files.get("tokenizer_config.json", b"{}"))
    except Exception as error:  # the library raises no narrower type
        raise BadPlugin(f"data.config.tokenizer: {folder} is unreadable: {error}") from error
    named = settings.get("eos_token", END)
    name = named.get("content") if isinstance(named, dict) else named
    end = tokenizer.token_to_id(name) if isinstance(name, str) else None
    if end is None:
        raise BadPlugin(
            f"data.config.tokenizer: {folder}/tokenizer_config.json names no eos_token that "
            "tokenizer.json has"
        )
    return Vocabulary(tokenizer, end, files)


def read_files(folder: Path) -> dict[str, bytes]:
    """A tokenizer's files, those of them that are there."""
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def folder_of(name: str) -> Path:
    """A tokenizer's folder; of a run, that of the version which "@…" names, or the stable one."""
    path = Path(name).expanduser()
    if path.name == "tokenizer.json":
        return path.parent
    if path.is_dir() and not (path / "ckpt").is_dir():
        return path
    from trainer.source import open_source

    try:
        return open_source(name).folder
    except BadPlugin:
        return path


def _file(name: str) -> Path:
    return folder_of(name) / "tokenizer.json"
