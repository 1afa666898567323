"""The tokenizer inside a GGUF file, as the files that everybody else reads.

Owns `tokenizer.json`, built with the `tokenizers` library, `tokenizer_config.json` with the chat
template, and `generation_config.json`. Invariant: how text is cut before merging is known for the
file's `tokenizer.ggml.pre`, or the file is refused: a wrong cut gives tokens that look right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from backends.importing.huggingface import dump
from backends.importing.material import ImportFailed

# tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How the published tokenizers of these families cut text: digits by one, or by three.
_ONE_DIGIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_THREE_DIGITS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"


def tokenizer_files(path: Path, facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Raises ImportFailed."""
    vocabulary = _Vocabulary(path, facts)
    model = facts.get("tokenizer.ggml.model")
    if model == "gpt2":
        tokenizer = _byte_level(vocabulary)
    elif model == "llama":
        tokenizer = _sentencepiece(vocabulary)
    else:
        raise ImportFailed(f"{path}: tokenizer.ggml.model {model!r} is not one of gpt2, llama")
    tokenizer.add_special_tokens(vocabulary.added(_CONTROL))
    tokenizer.add_tokens(vocabulary.added(_USER))
    bos = vocabulary.named("bos")
    if bos is not None and facts.get("tokenizer.ggml.add_bos_token", model == "llama"):
        number = int(facts["tokenizer.ggml.bos_token_id"])
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
        )
    names = {f"{role}_token": vocabulary.named(role) for role in ("bos", "eos")}
    names |= {
        "unk_token": vocabulary.named("unknown"),
        "pad_token": vocabulary.named("padding"),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{role: name for role, name in names.items() if name is not None},
    }
    template = facts.get("tokenizer.chat_template")
    if template:
        settings["chat_template"] = str(template)
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": dump(settings),
        "generation_config.json": dump(_generation(facts)),
    }


def _generation(facts: Mapping[str, Any]) -> dict[str, Any]:
    ends = [facts.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot")]
    stops = list(dict.fromkeys(int(end) for end in ends if end is not None))
    found: dict[str, Any] = {"eos_token_id": stops[0] if len(stops) == 1 else stops or None}
    for key, role in (("bos_token_id", "bos"), ("pad_token_id", "padding")):
        if facts.get(f"tokenizer.ggml.{role}_token_id") is not None:
            found[key] = int(facts[f"tokenizer.ggml.{role}_token_id"])
    return {key: value for key, value in found.items() if value is not None}


class _Vocabulary:
    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.tokens: Sequence[str] = self._list("tokens")
        self.kinds: Sequence[int] = self._list("token_type")
        if len(self.kinds) != len(self.tokens):
            raise ImportFailed(f"{path}: tokenizer.ggml.token_type has another length than tokens")
        self.ids = {token: number for number, token in enumerate(self.tokens)}

    def _list(self, key: str) -> Any:
        found = self.facts.get(f"tokenizer.ggml.{key}")
        if not isinstance(found, list) or not found:
            raise ImportFailed(f"{self.path}: tokenizer.ggml.{key} is missing")
        return found

    def merges(self) -> list[tuple[str, str]]:
        pairs = [merge.split(" ") for merge in self._list("merges")]
        if any(len(pair) != 2 for pair in pairs):
            raise ImportFailed(f"{self.path}: tokenizer.ggml.merges has an entry of no two parts")
        return [(first, second) for first, second in pairs]

    def scored_merges(self) -> list[tuple[str, str]]:
        """SentencePiece has scores and no merges: every way to make a piece of two others, the best
        piece first; ways to the same piece by how common their parts are."""
        scores, found = self._list("scores"), []
        for piece, number in self.ids.items():
            for cut in range(1, len(piece)):
                first, second = piece[:cut], piece[cut:]
                if first in self.ids and second in self.ids:
                    order = (-scores[number], self.ids[first], self.ids[second])
                    found.append((order, (first, second)))
        return [pair for _, pair in sorted(found)]

    def named(self, role: str) -> str | None:
        number = self.facts.get(f"tokenizer.ggml.{role}_token_id")
        if number is None:
            return None
        if not 0 <= int(number) < len(self.tokens):
            raise ImportFailed(f"{self.path}: tokenizer.ggml.{role}_token_id {number} is no token")
        return self.tokens[int(number)]

    def added(self, kind: int) -> list[AddedToken]:
        return [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, of in zip(self.tokens, self.kinds, strict=True)
            if of == kind
        ]


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    cut = str(vocabulary.facts.get("tokenizer.ggml.pre") or "default")
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    ignore_merges, normalizer = False, None
    if cut in ("default", "gpt-2"):
        before: Any = words
    elif cut == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        before = pre_tokenizers.Sequence([digits, words])
    elif cut in ("qwen2", "deepseek-r1-qwen"):
        split = pre_tokenizers.Split(Regex(_ONE_DIGIT), "isolated")
        before, normalizer = pre_tokenizers.Sequence([split, raw]), normalizers.NFC()
    elif cut in ("llama-bpe", "llama3", "llama-v3"):
        split = pre_tokenizers.Split(Regex(_THREE_DIGITS), "isolated")
        before, ignore_merges = pre_tokenizers.Sequence([split, raw]), True
    else:
        raise ImportFailed(
            f"{vocabulary.path}: tokenizer.ggml.pre {cut!r} is not one of default, gpt-2, smollm, "
            "qwen2, llama-bpe; import the model from its Hugging Face folder"
        )
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary.ids,
            merges=vocabulary.merges(),
            fuse_unk=False,
            ignore_merges=ignore_merges,
        )
    )
    tokenizer.pre_tokenizer = before
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: _Vocabulary) -> Tokenizer:
    unknown = vocabulary.named("unknown")
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary.ids,
            merges=vocabulary.scored_merges(),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=_BYTE in vocabulary.kinds,
        )
    )
    prefixed = bool(vocabulary.facts.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefixed else spaces
    )
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer
