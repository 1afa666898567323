"""Sequences that are cut over ranks: every token once, every pair of them equally often."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backends.models.decoder import Decoder
from trainer.context import Positions
from trainer.errors import BadPlugin
from trainer.sequence import IGNORE, Fit

MODEL = {
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 40), st.integers(0, 5))
def test_the_ranks_together_ask_for_what_the_whole_does(ranks, parts, length, silent):
    tokens = torch.arange(1, 1 + 2 * length).view(2, length)
    labels = torch.where(torch.arange(length) < silent, IGNORE, tokens)
    found, seen = set(), []
    for rank in range(ranks):
        batch = Fit(ranks, rank, parts)({"tokens": tokens, "labels": labels})
        assert batch["tokens"].shape[1] % parts == 0
        seen.append(batch["tokens"].shape[1])
        if ranks == 1:
            continue
        asked = batch["targets"] != IGNORE
        pairs = zip(batch["tokens"][asked].tolist(), batch["targets"][asked].tolist(), strict=True)
        found |= set(pairs)
        assert batch["asked"].tolist() == [max(1, int((labels[:, 1:] != IGNORE).sum()))] * 2
    assert len(set(seen)) == 1
    if ranks > 1:
        wanted = {(b - 1, b) for b in labels[:, 1:].flatten().tolist() if b != IGNORE}
        assert found == wanted


def test_positions_are_those_of_the_whole():
    x = torch.zeros(1, 6)
    whole = [Positions(rank, 3)(x) for rank in range(3)]
    assert [positions.tolist() for positions, _ in whole][1] == [3, 4, 5, 12, 13, 14]
    assert sorted(torch.cat([p for p, _ in whole]).tolist()) == list(range(18))
    assert {length for _, length in whole} == {18}


def test_the_last_queries_alone_give_what_they_give_among_all():
    attend = Decoder(**MODEL).model.layers[0].self_attn.attend
    q, k, v = torch.randn(2, 4, 9, 4), torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4)
    torch.testing.assert_close(attend(q[:, :, 6:], k, v), attend(q, k, v)[:, :, 6:])


def test_parts_of_the_mean_add_up():
    model, tokens = Decoder(**MODEL), torch.randint(0, 16, (2, 8))
    targets = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=IGNORE)
    asked = torch.tensor([14, 14])
    parts = [
        model.loss(
            {"tokens": tokens, "targets": torch.where(mask, targets, IGNORE), "asked": asked}
        )
        for mask in (torch.arange(8) < 3, torch.arange(8) >= 3)
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], model.loss({"tokens": tokens})[0])


def test_batches_without_a_sequence_are_refused():
    with pytest.raises(BadPlugin, match=r"parallel.cp: .* none as 'tokens'"):
        Fit(2)({"x": torch.zeros(2, 8)})
    assert Fit(parts=2)({"x": torch.zeros(2, 8)}).keys() == {"x"}
