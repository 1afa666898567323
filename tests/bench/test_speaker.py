"""Every token of the speaker tells which weights made its cache and its head."""

from __future__ import annotations

import pytest
import torch

from backends.llm.tokenizer import Tokenizer
from backends.models.decoder import Decoder
from bench.models import speaker
from bench.publisher import TEXT, Publisher, kind_of
from bench.scenarios.reload_streams import Streams

WORDS = Tokenizer(speaker.tokenizer())


def made(step: int) -> Decoder:
    weights = speaker.tensors(1)
    speaker.stamp(weights, step)
    decoder = Decoder(**speaker.CONFIG).eval().requires_grad_(False)
    decoder.load_state_dict(weights)
    return decoder


def said(decoder: Decoder, tokens: int = 3) -> list[str]:
    ids, _ = speaker.probe_of(0)
    for _ in range(tokens):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    return WORDS.decode(ids[-tokens:]).split()


@pytest.mark.parametrize("step", [0, 5, 31])
def test_a_version_names_itself_in_every_token(step):
    assert said(made(step)) == [speaker.said_by(step)] * 3


def test_another_versions_head_and_cache_are_told_apart():
    old, new = made(3), made(7)
    new.lm_head.load_state_dict(old.lm_head.state_dict())
    assert set(said(new)) == {"7.3"}


def test_a_cache_of_two_versions_shows_an_angle_between():
    mixed, other = made(3), made(7)
    for layer in (0, 1):
        mixed.model.layers[layer].load_state_dict(other.model.layers[layer].state_dict())
    assert set(said(mixed)) == {"5.3"}


@pytest.mark.parametrize(
    ("words", "named", "mixed", "misnamed"),
    [
        (["3.3"], {"19-ab"}, 0, 0),
        (["3.3"], {"4-ab"}, 0, 1),
        (["3.3", "4.4"], {"3-ab"}, 1, 0),
        (["3.4"], {"3-ab"}, 1, 0),
        (["3.3"], {"3-ab", "4-ab"}, 1, 0),
    ],
)
def test_streams_are_judged_by_what_they_say(words, named, mixed, misnamed):
    streams = Streams()
    streams.judge(words, named)
    assert (streams.mixed, streams.misnamed) == (mixed, misnamed)


def test_both_models_are_published_with_their_probes(tmp_path):
    for what in ("2", TEXT):
        publisher = Publisher(tmp_path / what, kind_of(what, 1))
        assert [publisher.publish().partition("-")[0] for _ in range(2)] == ["1", "2"]
