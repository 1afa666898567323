"""The sampler against each rule written out for one row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.llm.engine.sampler import BAD, Sampler
from backends.llm.engine.sequence import Sequence, Table
from tests.backends.llm.fakes import ListMask, generation

VOCABULARY = 70
CPU = torch.device("cpu")


class Batch:
    """Rows with their own wishes, sampled together."""

    def __init__(self, wishes: list[dict[str, Any]], prompt: tuple[int, ...] = (1, 2, 2)) -> None:
        self.table = Table(len(wishes) + 3, 128, 4)
        self.sampler = Sampler(self.table, VOCABULARY, CPU)
        self.rows = np.arange(len(wishes))[::-1] + 2
        self.prompt = np.array(prompt, np.int32)
        for row, wish in zip(self.rows.tolist(), wishes, strict=True):
            self.place(row, self.prompt, wish)

    def place(self, row: int, tokens: Any, wish: dict[str, Any]) -> None:
        each = generation(row, tokens.tolist(), 99, **wish)
        sequence = Sequence(each, 0, self.prompt, 99, each.sampling.seed or 0)
        sequence.row = row
        self.table.tokens[row, : len(tokens)] = tokens
        self.table.known[row] = len(tokens)
        self.sampler.place(sequence)

    def choose(self, logits: Tensor, position: int = 0, **options: Any) -> list[int]:
        positions = np.full(len(self.rows), position)
        chosen = self.sampler.choose(logits.clone(), self.rows, positions, **options)
        tokens: list[int] = chosen.tokens_B.tolist()
        self.table.tokens[self.rows, self.table.known[self.rows]] = tokens
        self.table.known[self.rows] += 1
        return tokens


def logits(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_rows_take_the_best() -> None:
    raw = logits(4)
    assert Batch([{}] * 4).choose(raw) == raw.argmax(-1).tolist()


def test_a_temperature_near_0_is_greedy() -> None:
    raw = logits(2)
    wishes = [{"temperature": 1e-30, "seed": 1}, {"temperature": 2e-5, "top_p": 0.9, "seed": 1}]
    assert Batch(wishes).choose(raw) == raw.argmax(-1).tolist()


WISHES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "top_k": st.sampled_from([0, 4]),
        "top_p": st.sampled_from([0.8, 1.0]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "logit_bias": st.sampled_from([(), ((3, 4.0), (5, -100.0))]),
        "logprobs": st.sampled_from([None, 2]),
        "seed": st.integers(0, 3),
    }
)


@given(st.lists(WISHES, min_size=2, max_size=6), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_row_is_the_same_alone_and_in_any_batch(
    wishes: list[dict[str, Any]], position: int
) -> None:
    raw = logits(len(wishes), position)
    together = Batch(wishes).choose(raw, position)
    apart = [Batch([w]).choose(raw[i : i + 1], position)[0] for i, w in enumerate(wishes)]
    assert together == apart


def test_penalties_count_what_was_generated_and_what_was_asked() -> None:
    wish = {"repetition_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.3}
    batch = Batch([wish, {}], prompt=(1, 2, 2))
    raw = logits(2)
    raw[:, 7] = 20.0
    raw[:, 9] = 19.5
    history: list[int] = []
    for step in range(6):
        token, plain = batch.choose(raw, step)
        assert plain == 7
        assert token == int(penalised(raw[0], (1, 2, 2), history, wish).argmax())
        history.append(token)
    assert {7, 9} <= set(history)
    # Off the table and on again, as after a preemption.
    batch.place(int(batch.rows[0]), np.array([1, 2, 2, *history], np.int32), wish)
    assert batch.choose(raw, 6)[0] == int(penalised(raw[0], (1, 2, 2), history, wish).argmax())


def penalised(raw: Tensor, prompt: Any, history: list[int], wish: dict[str, float]) -> Tensor:
    out = raw.clone()
    for token in {*prompt, *history}:
        factor = wish["repetition_penalty"]
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token in set(history):
        out[token] -= wish["presence_penalty"] + wish["frequency_penalty"] * history.count(token)
    return out


def test_a_negative_logit_is_penalised_too() -> None:
    batch = Batch([{"repetition_penalty": 2.0}], prompt=(4,))
    raw = torch.full((1, VOCABULARY), -1.0)
    raw[0, 4] = -0.8
    assert batch.choose(raw)[0] != 4


def test_bias_comes_first_and_is_in_the_logprobs() -> None:
    raw = logits(2)
    batch = Batch([{"logit_bias": ((5, 50.0),), "logprobs": 1}, {}])
    chosen = batch.sampler.choose(raw.clone(), batch.rows, np.zeros(2, np.int64))
    assert chosen.tokens_B.tolist() == [5, int(raw[1].argmax())]
    assert chosen.likely is not None
    assert chosen.likely.logprobs_M.tolist() == pytest.approx([0.0], abs=1e-6)
    raw[0, 5] += 50
    expected = raw[0].log_softmax(-1)
    assert chosen.likely.top_MK[0, 0] == pytest.approx(float(expected.max()), abs=1e-5)


def test_logprobs_are_of_the_models_own_distribution() -> None:
    raw = logits(1)
    wish = {"temperature": 0.3, "top_k": 1, "presence_penalty": 1.0, "logprobs": 3}
    batch = Batch([wish])
    mask = ListMask([[11]], VOCABULARY)
    chosen = batch.sampler.choose(
        raw.clone(), batch.rows, np.zeros(1, np.int64), [(0, mask.allowed())]
    )
    assert chosen.tokens_B.tolist() == [11] and chosen.likely is not None
    expected = raw[0].log_softmax(-1)
    assert float(chosen.likely.logprobs_M) == pytest.approx(float(expected[11]), abs=1e-5)
    assert chosen.likely.top_ids_MK[0].tolist() == expected.topk(3).indices.tolist()


def test_stop_ids_wait_for_min_tokens() -> None:
    raw = logits(2)
    raw[:, 6] = 50.0
    batch = Batch([{"min_tokens": 3, "stop_ids": frozenset({6})}, {"stop_ids": frozenset({6})}])
    assert [batch.choose(raw, n)[0] == 6 for n in range(5)] == [False] * 3 + [True] * 2
    assert batch.choose(raw, 0)[1] == 6


def test_masks_bind_the_rows_that_have_them() -> None:
    raw = logits(3)
    batch = Batch([{}, {"temperature": 1.0}, {}])
    masks = [(0, ListMask([[69, 31]], VOCABULARY).allowed())]
    masks.append((1, ListMask([[32]], VOCABULARY).allowed()))
    best = 69 if raw[0, 69] > raw[0, 31] else 31
    assert batch.choose(raw, masks=masks) == [best, 32, int(raw[2].argmax())]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_bad_and_harms_no_other(temperature: float, value: float) -> None:
    raw = logits(3)
    raw[1, 40] = value
    good = Batch([{}] * 3).choose(logits(3))
    wishes = [{}, {"temperature": temperature, "top_p": 0.9}, {}]
    assert Batch(wishes).choose(raw) == [good[0], BAD, good[2]]
    raw[1] = -torch.inf
    assert Batch(wishes).choose(raw) == [good[0], BAD, good[2]]
    raw[1, 3] = 0.0
    assert Batch(wishes).choose(raw) == [good[0], 3, good[2]]


def test_a_row_forgets_whose_it_was() -> None:
    raw = logits(1)
    wish = {"repetition_penalty": 3.0, "logit_bias": ((1, 99.0),), "temperature": 1.0, "top_k": 2}
    batch = Batch([wish | {"logprobs": 1, "min_tokens": 2, "stop_ids": frozenset({4})}])
    batch.choose(raw)
    batch.place(int(batch.rows[0]), batch.prompt, {})
    assert batch.choose(raw) == raw.argmax(-1).tolist()
