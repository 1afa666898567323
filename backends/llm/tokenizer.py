"""Text to tokens, and the exact bytes that every token stands for.

Owns one `tokenizer.json`: encoding goes through the `tokenizers` library, which knows special
tokens only by their seals; decoding through a table of bytes made once, so that text can be cut
between any two tokens. Thread-safe. Invariant: the bytes of a sequence are those of its tokens, one
after the other (but for the space that a sentencepiece text begins with).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer as Library

from backends.llm.errors import BadTokenizer
from backends.llm.special_tokens import Names, Seals

# Characters from which on others must not wait for a text to be encoded.
LONG = 8192
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: the letter that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(0x100 + place) for place in range(len(rest)))]
    return dict(zip(letters, [*printable, *rest], strict=True))


class Tokenizer:
    """`pieces[token]` is a token's bytes; None for special tokens, which are no text."""

    def __init__(self, data: bytes) -> None:
        """Raises BadTokenizer."""
        try:
            spec = orjson.loads(data)
            self.control = Names(_special(spec))
            self._seals = Seals(self.control)
            self._library = Library.from_str(_sealed(spec, self._seals))
            decoder = _Decoder(spec.get("decoder") or {})
        except BadTokenizer:
            raise
        except Exception as error:  # the library raises bare Exception
            raise BadTokenizer(f"tokenizer.json cannot be read: {error}") from error
        # Never truncated or padded in silence, whatever the file says.
        self._library.no_truncation()
        self._library.no_padding()
        added = self._library.get_added_tokens_decoder()
        unseal = self._seals.unseal
        self.special: Mapping[str, int] = {
            unseal(token.content): id for id, token in added.items() if token.special
        }
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        self._names = {unseal(name): id for name, id in vocabulary.items()}
        self.pieces: list[bytes | None] = [None] * (max(self._names.values(), default=-1) + 1)
        for name, id in self._names.items():
            self.pieces[id] = decoder.piece(name)
        for id, token in added.items():
            self.pieces[id] = None if token.special else token.content.encode()
        # A text has at least so many tokens as its bytes divided by this.
        self.longest = max(
            (len(piece) for piece in (*self.pieces, *map(str.encode, self.special)) if piece),
            default=1,
        )
        # The bytes that the first text of a sequence loses, where it has them.
        self.lead = decoder.lead

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Raises BadTokenizer."""
        try:
            return cls((folder / "tokenizer.json").read_bytes())
        except OSError as error:
            raise BadTokenizer(f"{folder}/tokenizer.json cannot be read: {error}") from error

    def reveal(self, *names: str) -> None:
        """Let special tokens of these names be text: what reads them needs to see them. Before the
        tokenizer is shared."""
        for name in names:
            if name in self.special:
                self.pieces[self.special[name]] = name.encode()

    def encode(self, text: str, *, special: bool, said: Seals | None = None) -> list[int]:
        """`special`: with the tokens that begin (or end) a text, as the model was trained. Names
        of special tokens in the text become those tokens, which is how templates write them; what
        `said` has sealed is text."""
        text = self._seals.seal(text)
        if said is not None:
            text = said.unseal(text)
        if len(text) < LONG:
            short: list[int] = self._library.encode(text, add_special_tokens=special).ids
            return short
        # A batch of one: for batches the library lets go of the interpreter, for single texts not.
        [found] = self._library.encode_batch([text], add_special_tokens=special)
        ids: list[int] = found.ids
        return ids

    def id_of(self, name: str) -> int | None:
        return self._names.get(name)

    def name_of(self, token: int) -> str:
        """As the vocabulary has it; empty for an id that it does not have."""
        return self._seals.unseal(self._library.id_to_token(token) or "")

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """The bytes of all of them, special tokens left out; unknown ids are nothing."""
        size = len(self.pieces)
        return b"".join(self.pieces[token] or b"" for token in tokens if 0 <= token < size)

    def decode(self, tokens: Sequence[int]) -> str:
        data = self.bytes_of(tokens)
        return data.removeprefix(self.lead).decode("utf-8", "replace")


def _special(spec: Mapping[str, Any]) -> list[str]:
    return [token["content"] for token in spec.get("added_tokens") or () if token["special"]]


def _sealed(spec: Mapping[str, Any], seals: Seals) -> str:
    """The file with the names of special tokens replaced by their seals, wherever it has them."""
    added = [
        {**token, "content": seals.of(token["content"])} for token in spec.get("added_tokens") or ()
    ]
    model = dict(spec["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {seals.of(name): id for name, id in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[seals.of(name), score] for name, score in vocabulary]
    if (unknown := model.get("unk_token")) is not None:
        model["unk_token"] = seals.of(unknown)
    return orjson.dumps({**spec, "added_tokens": added, "model": model}).decode()


class _Decoder:
    """What `tokenizer.json` says of turning a token's name into text; one token at a time."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._letters: dict[str, int] | None = None
        self._fallback = False
        self._replace: list[tuple[str, str]] = []
        self.lead = b""
        self._read(spec)

    def piece(self, name: str) -> bytes:
        if self._letters is not None:
            try:
                return bytes(map(self._letters.__getitem__, name))
            except KeyError:
                return name.encode()
        if self._fallback and (match := _BYTE_TOKEN.fullmatch(name)):
            return bytes([int(match[1], 16)])
        for old, new in self._replace:
            name = name.replace(old, new)
        return name.encode()

    def _read(self, spec: Mapping[str, Any]) -> None:
        kind = spec.get("type")
        if kind == "Sequence":
            for part in spec["decoders"]:
                self._read(part)
        elif kind == "ByteLevel":
            self._letters = byte_letters()
        elif kind == "ByteFallback":
            self._fallback = True
        elif kind == "Replace" and "String" in spec["pattern"]:
            self._replace.append((spec["pattern"]["String"], spec["content"]))
        elif kind == "Metaspace":
            self._replace.append((spec["replacement"], " "))
            if spec.get("prepend_scheme", "always") != "never":
                self.lead = b" "
        elif kind == "Strip" and not spec["stop"] and spec["start"] <= 1:
            self.lead = spec["content"].encode() * spec["start"]
        elif kind != "Fuse":
            raise BadTokenizer(
                f"tokenizer.json: decoder {kind!r} is not supported; known are ByteLevel, "
                "ByteFallback, Metaspace, and Replace, Strip, Fuse as sentencepiece uses them"
            )
