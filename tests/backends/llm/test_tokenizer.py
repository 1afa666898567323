"""Bytes of tokens and text in pieces, against the tokenizers library decoding all at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llm.detokenise import Detokeniser
from backends.llm.errors import BadTokenizer
from backends.llm.special_tokens import Seals
from backends.llm.tokenizer import Tokenizer
from tests.backends.llm.scripted import byte_level, ours, sentencepiece

LIBRARIES = {"byte_level": byte_level(), "sentencepiece": sentencepiece()}
OURS = {name: ours(library) for name, library in LIBRARIES.items()}
names = st.sampled_from(sorted(LIBRARIES))


def cut(tokens: list[int], cuts: list[int]) -> list[list[int]]:
    parts, at = [], 0
    for size in cuts:
        parts.append(tokens[at : at + size])
        at += size
    return [*parts, tokens[at:]]


@given(name=names, text=st.text(max_size=40), cuts=st.lists(st.integers(0, 5)))
def test_text_in_pieces_is_the_text_at_once(name, text, cuts):
    library, tokenizer = LIBRARIES[name], OURS[name]
    tokens = tokenizer.encode(text, special=False)
    assert tokens == library.encode(text, add_special_tokens=False).ids
    whole = library.decode(tokens, skip_special_tokens=True)
    detokeniser = Detokeniser(tokenizer)
    said = ""
    for part in cut(tokens, cuts):
        said += detokeniser.feed(part)
        assert whole.startswith(said), "nothing that was said changes"
    assert said + detokeniser.feed([], final=True) == whole == tokenizer.decode(tokens)


MIXED = [*LIBRARIES["byte_level"].get_added_tokens_decoder().values()]
MIXED = [token.content for token in MIXED] + ["<|", "im_", "end|>", "the", " ", "é", "<s>", "</s>"]


@given(name=names, parts=st.lists(st.sampled_from(MIXED), max_size=20))
def test_names_of_special_tokens_are_these_tokens_as_the_library_has_it(name, parts):
    text = "".join(parts)
    expected = LIBRARIES[name].encode(text, add_special_tokens=False).ids
    assert OURS[name].encode(text, special=False) == expected


@given(parts=st.lists(st.sampled_from(MIXED), max_size=20))
def test_what_a_client_says_is_never_a_control_token(parts):
    tokenizer, text = OURS["byte_level"], "".join(parts)
    said = Seals(tokenizer.control)
    written = f"<|im_start|>{said.seal(text)}<|im_end|>"
    first, *tokens, last = tokenizer.encode(written, special=False, said=said)
    assert [first, last] == [tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")]
    assert not set(tokens) & set(tokenizer.special.values())
    assert tokenizer.decode(tokens) == text


@given(tokens=st.lists(st.integers(0, len(OURS["byte_level"].pieces) - 1), max_size=30))
def test_any_tokens_even_such_as_are_no_utf8(tokens):
    """Sentencepiece is left out: its library replaces whole runs of bytes where one is wrong."""
    whole = LIBRARIES["byte_level"].decode(tokens, skip_special_tokens=True)
    assert OURS["byte_level"].decode(tokens) == whole
    detokeniser = Detokeniser(OURS["byte_level"])
    said = "".join(detokeniser.feed([token]) for token in tokens)
    assert said + detokeniser.feed([], final=True) == whole


def test_a_character_is_held_back_until_it_is_whole():
    tokenizer = OURS["byte_level"]
    detokeniser = Detokeniser(tokenizer)
    parts = [detokeniser.feed([byte]) for byte in "€x".encode()]
    assert parts == ["", "", "€", "x"]
    assert detokeniser.feed(list("€".encode())[:2], final=True) == "�"


def test_a_continuation_keeps_its_first_space():
    tokenizer = OURS["sentencepiece"]
    tokens = [tokenizer.id_of("▁the")]
    assert Detokeniser(tokenizer).feed(tokens) == "the"
    assert Detokeniser(tokenizer, begins=False).feed(tokens) == " the"


def test_special_tokens_are_no_text_and_added_ones_are():
    tokenizer = OURS["byte_level"]
    ids = tokenizer.encode("<|im_start|>a<think>", special=False)
    assert tokenizer.special.keys() == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert tokenizer.decode(ids) == "a<think>"
    assert tokenizer.name_of(ids[0]) == "<|im_start|>" and tokenizer.name_of(10**6) == ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{}", "cannot be read"),
        (b"not json", "cannot be read"),
        (b'{"decoder": {"type": "WordPiece"}}', "cannot be read"),
    ],
)
def test_a_file_that_is_no_tokenizer(data, said):
    with pytest.raises(BadTokenizer, match=said):
        Tokenizer(data)


def test_a_decoder_that_nobody_knows_is_refused():
    from tokenizers import decoders

    library = byte_level()
    library.decoder = decoders.WordPiece()
    with pytest.raises(BadTokenizer, match="'WordPiece' is not supported; known are ByteLevel"):
        ours(library)


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel"])
def test_other_kinds_of_vocabularies_are_sealed_too(kind):
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    pieces = ["<unk>", "<s>", "▁the", "s"]
    library = Library(
        models.Unigram([(piece, -1.0) for piece in pieces], 0, False)
        if kind == "Unigram"
        else models.WordLevel({piece: id for id, piece in enumerate(pieces)}, "<unk>")
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(["<unk>", "<s>"])
    tokenizer = ours(library)
    assert [tokenizer.name_of(id) for id in range(4)] == pieces
    for text in ("<s>the", "the<unk>the", "zz<s>"):
        expected = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, special=False) == expected
    said = Seals(tokenizer.control)
    assert 1 not in tokenizer.encode(said.seal("<s>the"), special=False, said=said)
