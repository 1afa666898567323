"""Drawing, against each cut's definition written the slow way, and against the probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llm import chance
from backends.llm.draw import draw, truncate, weights

ROWS = st.integers(0, 2**32 - 1)


def kept(probabilities: list[float], top_k: int, top_p: float, min_p: float) -> set[int]:
    """What `transformers` keeps, token by token."""
    order = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    stay = order[:top_k] if top_k else order
    whole = sum(probabilities[token] for token in stay)
    before, inside = 0.0, []
    for token in stay:
        if top_p >= 1 or before < top_p * whole or not inside:
            inside.append(token)
        before += probabilities[token]
    return {t for t in inside if probabilities[t] >= min_p * probabilities[order[0]]}


@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
@given(
    seed=ROWS,
    top_k=st.sampled_from([0, 1, 3, 150, 299, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1 - 2**-53, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=40, deadline=None)
def test_cuts_keep_what_they_say(
    spread: float, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * spread
    weights_BV = weights(logits_V.repeat(2, 1), torch.tensor([1.0, 0.7]))
    expected = [
        kept(row.double().tolist(), top_k, top_p, min_p) for row in weights_BV.clone().unbind()
    ]
    left_BV = truncate(
        weights_BV,
        torch.tensor([top_k, top_k]),
        torch.tensor([top_p, top_p], dtype=torch.float64),
        torch.tensor([min_p, min_p]),
        top_k,
    )
    for row, tokens in zip(left_BV, expected, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == tokens


def test_rows_of_a_batch_are_cut_each_by_its_own() -> None:
    logits_BV = torch.randn(4, 400, generator=torch.Generator().manual_seed(1))
    cuts = [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.99, 0.0), (7, 0.5, 0.3)]
    weights_BV = weights(logits_BV, torch.ones(4))
    expected = [
        kept(row.double().tolist(), *cut) for row, cut in zip(weights_BV, cuts, strict=True)
    ]
    top_k, top_p, min_p = zip(*cuts, strict=True)
    left_BV = truncate(
        weights_BV,
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(min_p),
        7,
    )
    for row, tokens in zip(left_BV, expected, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == tokens


@given(seed=ROWS, vocabulary=st.sampled_from([1, 7, 128, 129, 1000]))
@settings(max_examples=60, deadline=None)
def test_a_draw_is_where_the_cumulative_sum_passes(seed: int, vocabulary: int) -> None:
    random = torch.Generator().manual_seed(seed)
    weights_BV = torch.rand(5, vocabulary, generator=random)
    weights_BV *= torch.rand(5, vocabulary, generator=random) < 0.3
    weights_BV[:, int(torch.randint(vocabulary, (), generator=random))] = 1.0
    uniform_B = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-53], dtype=torch.float64)
    for row, (token, at) in enumerate(zip(draw(weights_BV, uniform_B), uniform_B, strict=True)):
        exact = weights_BV[row].double()
        assert exact[token] > 0
        before = float(exact[:token].sum())
        passed = float(at * exact.sum())
        assert before - 1e-9 <= passed <= before + float(exact[token]) + 1e-9


def test_draws_follow_the_probabilities() -> None:
    weights_V = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125])
    count = 20_000
    seeds = np.arange(count, dtype=np.uint64)
    uniform = chance.uniform(seeds, seeds * 0, seeds * 0)
    drawn = draw(weights_V.expand(count, 5).contiguous(), torch.from_numpy(uniform))
    shares = torch.bincount(drawn, minlength=5) / count
    assert shares.tolist() == pytest.approx(weights_V.tolist(), abs=0.015)


def test_a_temperature_near_0_is_greedy_and_no_nan() -> None:
    logits_BV = torch.tensor([[1.0, 3.0, 2.0]])
    assert weights(logits_BV, torch.tensor([1e-30])).tolist() == [[0.0, 1.0, 0.0]]


def test_chances_depend_on_each_of_their_parts_and_on_nothing_else() -> None:
    parts = [(s, c, p) for s in range(8) for c in range(8) for p in range(64)]
    grid = np.array(parts, np.uint64)
    found = chance.uniform(*grid.T)
    assert len(np.unique(found)) == len(grid) and found.min() >= 0 and found.max() < 1
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert found.reshape(64, 64).mean(1) == pytest.approx(0.5, abs=0.2)
    turned = grid[::-1]
    assert (chance.uniform(*turned.T) == found[::-1]).all()
    # Changing it would change the answer to every request that comes with a seed.
    assert chance.uniform(*np.array([[7], [1], [2]], np.uint64))[0] == FIRST


FIRST = 0.4489641523277663
