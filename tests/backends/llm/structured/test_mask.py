"""Masks and their cache: shared, bounded, right after the table began anew."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backends.llm.structured import automaton, utf8
from backends.llm.structured.grammars import Grammars
from backends.llm.structured.mask import MaskCache
from backends.llm.structured.vocabulary import Vocabulary
from tests.backends.llm.structured.walks import STOP, VOCABULARY, tokens_of, walk


def test_masks_are_shared_and_read_only():
    masks = Grammars().json(VOCABULARY)
    first, second = masks().allowed(), masks().allowed()
    assert first is second and first.dtype == np.uint32
    assert len(first) == VOCABULARY.words
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


def test_grammars_are_compiled_once_and_kept_within_bounds():
    grammars = Grammars()
    for number in range(100):
        grammars.regex(VOCABULARY, f"a{{{number}}}", "p")
    assert grammars.regex(VOCABULARY, "a{99}", "p")().allowed() is not None
    assert len(grammars._kept) == 64


def test_a_cache_forgets_what_was_used_longest_ago():
    cache = MaskCache(max_bytes=8)
    for key in range(3):
        cache.put(key, np.zeros(1, np.uint32))
        cache.get(0)
    assert [cache.get(key) is None for key in range(3)] == [False, True, False]


def test_a_table_that_is_full_begins_anew(monkeypatch):
    monkeypatch.setattr(automaton, "MAX_STATES", 20)
    schema = {"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 4}
    masks = Grammars().schema(VOCABULARY, schema, "s")
    texts = [walk(masks, seed, most=400, hurry=0.3) for seed in range(6)]
    assert all(len(json.loads(text)) >= 4 for text in texts if text) and any(texts)
    before = masks()
    for byte in b'["abc"':
        before.accept(byte)
    for seed in range(3):
        walk(masks, 10 + seed, most=200)
    assert tokens_of(before) == [ord(",")]


def test_a_token_against_the_mask_is_an_error():
    mask = Grammars().regex(VOCABULARY, "ab", "p")()
    with pytest.raises(ValueError, match="against the mask"):
        mask.accept(ord("x"))


def test_the_end_is_allowed_where_the_text_may_end():
    mask = Grammars().regex(VOCABULARY, "ab?", "p")()
    assert STOP not in tokens_of(mask)
    assert not mask.accept(ord("a"))
    assert STOP in tokens_of(mask) and mask.accept(STOP)


def test_a_vocabulary_that_lacks_the_bytes_ends_rather_than_hangs():
    vocabulary = Vocabulary([b"a", b"b", None], 3, frozenset([2]))
    mask = Grammars().regex(vocabulary, "ac", "p")()
    assert tokens_of(mask, vocabulary) == [0] and not mask.accept(0)
    assert tokens_of(mask, vocabulary) == [2]


def test_every_character_is_its_own_utf8():
    for low, high in ((0, 0x7F), (0x70, 0x900), (0xD000, 0xE100), (0xFFF0, 0x10010), (0, 0x10FFFF)):
        ranges = [list(sequence) for sequence in utf8.utf8_ranges(low, high)]

        def encodes(code, ranges=ranges):
            data = chr(code).encode()
            return sum(
                len(data) == len(r) and all(a <= b <= c for b, (a, c) in zip(data, r, strict=True))
                for r in ranges
            )

        for code in {low, high, low + 1, high - 1, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000}:
            if not 0xD800 <= code <= 0xDFFF and code <= 0x10FFFF:
                assert encodes(code) == (low <= code <= high), hex(code)
