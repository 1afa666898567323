"""Drawing, against each cut's definition written the slow way, and against the probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llm.engine import chance
from backends.llm.engine.draw import Cuts, _draw_likeliest, _nucleus, draw, draw_cut, probabilities

PLACES = 65
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


def found(probabilities_BV: torch.Tensor, cuts: Cuts) -> list[set[int]]:
    """What is drawn at places from the first to the last."""
    places = torch.linspace(0, 1 - 1e-12, PLACES, dtype=torch.float64)
    rows, count = len(probabilities_BV), len(places)
    many = Cuts(*(tensor.repeat_interleave(count) for tensor in cuts[:3]), cuts.most, cuts.ranked)
    drawn = draw_cut(probabilities_BV.repeat_interleave(count, 0), many, places.repeat(rows))
    return [set(row.tolist()) for row in drawn.view(rows, count)]


def made(cuts: list[tuple[int, float, float]]) -> Cuts:
    top_k, top_p, min_p = zip(*cuts, strict=True)
    return Cuts(
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(min_p),
        max(top_k),
        all(top_k),
    )


@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
@given(
    seed=ROWS,
    top_k=st.sampled_from([0, 1, 3, 150, 299, 1000]),
    top_p=st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)
@settings(max_examples=30, deadline=None)
def test_cuts_keep_what_they_say(
    spread: float, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits_V = torch.randn(300, generator=torch.Generator().manual_seed(seed)) * spread
    chances_BV = probabilities(logits_V.repeat(2, 1), torch.tensor([1.0, 0.7]))
    drawn = found(chances_BV, made([(top_k, top_p, min_p)] * 2))
    for row, tokens in zip(chances_BV, drawn, strict=True):
        expected = kept(row.double().tolist(), top_k, top_p, min_p)
        assert tokens <= expected
        # What is too unlikely for so few places may be missed. Where the likeliest 128 are enough,
        # they are drawn in order: the last place is the last token's.
        whole = row[list(expected)].sum()
        assert {t for t in expected if row[t] > 1.01 / (PLACES - 1) * whole} <= tokens
        if len(kept(row.double().tolist(), top_k, top_p, 0.0)) < 128:
            assert min(row[list(tokens)]) == min(row[list(expected)])


@given(seed=ROWS, top_p=st.sampled_from([0.1, 0.7, 0.99, 1.0]), min_p=st.sampled_from([0.0, 0.2]))
@settings(max_examples=30, deadline=None)
def test_the_same_is_left_where_all_are_candidates(seed: int, top_p: float, min_p: float) -> None:
    """As on a GPU where a nucleus is wide."""
    chances_BV = torch.randn(1, 300, generator=torch.Generator().manual_seed(seed)).softmax(-1)
    expected = kept(chances_BV[0].double().tolist(), 0, top_p, min_p)
    places = torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)
    cuts = made([(0, top_p, min_p)] * 2)
    tokens, _, beyond = _draw_likeliest(chances_BV.repeat(2, 1), cuts, places, 300)
    assert not beyond.any() and int(tokens[0]) == int(chances_BV.argmax())
    assert chances_BV[0, tokens[1]] == min(chances_BV[0, list(expected)])


@given(seed=ROWS, need=st.sampled_from([1e-9, 0.3, 0.9, 0.999]))
@settings(max_examples=30, deadline=None)
def test_a_wide_nucleus_ends_where_sorting_would_end_it(seed: int, need: float) -> None:
    random = torch.Generator().manual_seed(seed)
    spread_M1 = torch.tensor([[0.01], [1.0], [9.0]])
    chances_MV = (torch.randn(3, 300, generator=random) * spread_M1).softmax(-1)
    least_M = _nucleus(chances_MV, torch.full((3,), need, dtype=torch.float64))
    for row, least in zip(chances_MV, least_M.tolist(), strict=True):
        expected = kept(row.double().tolist(), 0, need, 0.0)
        assert least == pytest.approx(float(min(row[list(expected)])), rel=1e-5, abs=1e-15)


def test_rows_of_a_batch_are_cut_each_by_its_own() -> None:
    chances_BV = torch.randn(4, 400, generator=torch.Generator().manual_seed(1)).softmax(-1)
    cuts = [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.99, 0.0), (7, 0.5, 0.3)]
    drawn = found(chances_BV, made(cuts))
    for row, tokens, cut in zip(chances_BV, drawn, cuts, strict=True):
        expected = kept(row.double().tolist(), *cut)
        assert tokens <= expected and len(tokens) > min(0.5 * PLACES, 0.9 * len(expected))


@pytest.mark.parametrize("top_p", [0.5, 0.9999])
def test_what_is_drawn_from_a_cut_follows_the_probabilities_that_are_left(top_p: float) -> None:
    """From the likeliest alone, and from more than are looked at first."""
    chances_V = torch.linspace(3, 0, 200).softmax(-1)
    expected = kept(chances_V.double().tolist(), 0, top_p, 0.0)
    assert (len(expected) > 128) == (top_p > 0.9)
    count = 2000
    uniform = torch.linspace(0, 1 - 1e-12, count, dtype=torch.float64)
    cuts = Cuts(*(tensor.expand(count) for tensor in made([(0, top_p, 0.0)])[:3]), 0, False)
    drawn = draw_cut(chances_V.expand(count, -1).contiguous(), cuts, uniform)
    share = chances_V / chances_V[list(expected)].sum()
    shares = torch.bincount(drawn, minlength=200) / count
    wanted = [float(share[token]) if token in expected else 0.0 for token in range(200)]
    assert shares.tolist() == pytest.approx(wanted, abs=1e-3)


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
