"""The text of a choice: stop strings, log-probabilities and cuts, whatever the pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.llm.choice import Choice
from backends.llm.generation import Logprob, Output
from tests.backends.llm.scripted import byte_level, ours

TOKENIZER = ours(byte_level())


def output(tokens, finish=None, *, logprobs=False):
    entries = [Logprob(token, -1.0, ()) for token in tokens] if logprobs else None
    return Output("k", 0, tokens, finish, entries)


def pieces(tokens, cuts, finish, *, logprobs=False):
    at = 0
    for size in cuts:
        yield output(tokens[at : at + size], logprobs=logprobs)
        at += size
    yield output(tokens[at:], finish, logprobs=logprobs)


texts = st.text(alphabet="abé日x", max_size=12)


@given(text=texts, stop=st.text("abé", min_size=1, max_size=3), cuts=st.lists(st.integers(0, 4)))
def test_the_same_text_in_any_pieces(text, stop, cuts):
    tokens = TOKENIZER.encode(text, special=False)
    before, found, _ = text.partition(stop)
    for logprobs in (False, True):
        choice = Choice(0, TOKENIZER, [stop])
        deltas = [choice.feed(each) for each in pieces(tokens, cuts, "length", logprobs=logprobs)]
        deltas = [delta for delta in deltas if delta is not None]
        assert "".join(delta.text for delta in deltas) == before
        assert [delta.finish for delta in deltas if delta.finish] == ["stop" if found else "length"]
        assert deltas[-1].finish and choice.finished
        entries = [entry for delta in deltas for entry in delta.tokens]
        if logprobs:
            said = b"".join(entry.data for entry in entries)
            assert said.startswith(before.encode()), "each token with its text"
            assert len(said) - len(before.encode()) < 8, "and at most the one that is cut"


@given(text=texts, cuts=st.lists(st.integers(0, 4)))
def test_without_stops_every_token_has_its_entry(text, cuts):
    tokens = TOKENIZER.encode(text, special=False)
    choice = Choice(0, TOKENIZER, [])
    deltas = [choice.feed(each) for each in pieces(tokens, cuts, "stop", logprobs=True)]
    entries = [entry for delta in deltas if delta for entry in delta.tokens]
    assert [entry.data for entry in entries] == [TOKENIZER.pieces[token] for token in tokens]
    assert choice.tokens == len(tokens)


def test_tokens_up_to_the_stop_string_are_counted():
    choice = Choice(0, TOKENIZER, ["x"])
    delta = choice.feed(output(TOKENIZER.encode("aaxbb", special=False)))
    assert (delta.text, delta.finish, choice.tokens) == ("aa", "stop", 3)
    assert choice.feed(output([97])) is None, "the engine may be late to hear of it"


def test_stop_strings_count_only_after_min_tokens():
    choice = Choice(0, TOKENIZER, ["b"], min_tokens=2)
    delta = choice.feed(output(TOKENIZER.encode("bxbx", special=False)))
    assert (delta.text, delta.finish) == ("bx", "stop")


def test_special_tokens_stand_by_their_names_in_logprobs():
    choice = Choice(0, TOKENIZER, [])
    end = TOKENIZER.id_of("<|im_end|>")
    entry = Logprob(97, -0.1, ((97, -0.1), (end, -3.0)))
    delta = choice.feed(Output("k", 0, [97], None, [entry]))
    assert delta.tokens[0].top == [("a", b"a", -0.1), ("<|im_end|>", b"<|im_end|>", -3.0)]
