"""SentencePiece's own rule, joining the best-scored neighbours first, is the oracle."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from backends.importing.gguf_tokenizer import tokenizer_files

PIECES = ["▁t", "he", "▁the", "er", "▁w", "at", "▁wat", "▁water", "in", "▁in", "ine", "ne", "▁th"]
TOKENS = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)] + PIECES
TOKENS += sorted({letter for piece in PIECES for letter in piece})
SCORES = [-float(i) for i in range(len(TOKENS))]


def facts(**more: Any) -> dict[str, Any]:
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(TOKENS) - 259)
    said = {
        "model": "llama",
        "tokens": TOKENS,
        "scores": SCORES,
        "token_type": kinds,
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | more
    return {f"tokenizer.ggml.{key}": value for key, value in said.items()}


def joined(text: str) -> list[str]:
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        scored = [
            (SCORES[TOKENS.index(a + b)], -i)
            for i, (a, b) in enumerate(pairwise(parts))
            if a + b in TOKENS
        ]
        if not scored:
            return parts
        at = -max(scored)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def rebuilt(**more: Any) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files(Path("m"), facts(**more))["tokenizer.json"].decode())


def test_pieces_join_by_their_scores() -> None:
    found = rebuilt()
    for text in ("the water in the", "intheine watwaterine", "nee rathe t"):
        assert found.encode(text, add_special_tokens=False).tokens == joined(text)
        assert found.decode(found.encode(text).ids) == text


def test_what_has_no_piece_becomes_bytes() -> None:
    found = rebuilt()
    assert found.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert found.decode(found.encode("the é in").ids) == "the é in"


def test_the_beginning_is_marked_unless_the_file_says_no() -> None:
    assert rebuilt().encode("the").tokens == ["<s>", "▁the"]
    assert rebuilt(add_bos_token=False).encode("the").tokens == ["▁the"]
