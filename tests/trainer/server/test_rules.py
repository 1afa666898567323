"""What the server does with contributions: whole rounds, one by one, in which order."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from trainer.server.layout import Layout, digest
from trainer.server.rules import Applier, OneByOne, Together
from trainer.server.tickets import Ticket

LR, B, PARTS = 0.7, 0.9, 3


def numbers(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(5, generator=generator) for name in ("a", "b")}


def deltas(rounds: int) -> list[tuple[Ticket, dict[str, Tensor]]]:
    return [(Ticket(n, n, 1, 1, n // PARTS + 1), numbers(n + 1)) for n in range(rounds * PARTS)]


def test_one_by_one_without_haste_is_a_round_at_a_time():
    """Delayed Nesterov: the momentum waits for a round's worth of deltas."""
    one, other = numbers(0), numbers(0)
    slow, fast = OneByOne(PARTS, one, LR, B), Together(PARTS, other, LR, B)
    arrived = deltas(4)
    for begin in range(0, len(arrived), PARTS):
        whole = arrived[begin : begin + PARTS]
        for ticket, delta in whole:
            slow.apply(ticket, [delta])
        fast.apply(whole[0][0], [delta for _, delta in whole])
        for name in one:
            torch.testing.assert_close(one[name], other[name])


def test_the_order_of_arrival_within_a_round_leaves_no_trace():
    found = set()
    for order in permutations(range(PARTS)):
        weights, buffer = numbers(0), {"n": torch.zeros(2)}
        rule = Together(PARTS, weights, LR, B)
        applier = Applier(rule, lambda ticket: ticket.number // PARTS, buffer)
        arrived = [(t, {**d, "n": torch.full((2,), float(t.number))}) for t, d in deltas(1)]
        for position in order[:-1]:
            assert applier.arrive(*arrived[position]) == ([], 0.0)
        tickets, norm = applier.arrive(*arrived[order[-1]])
        assert [ticket.number for ticket in tickets] == [0, 1, 2] and norm > 0
        assert applier.version == 1 and torch.equal(buffer["n"], torch.zeros(2))
        found.add(digest(Layout(weights).pack(weights)))
    assert len(found) == 1


def test_tensors_keep_their_bits_on_the_way():
    tensors = {
        "half": torch.randn(3, 5).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "wide": torch.randn(4, 2, dtype=torch.float64),
    }
    layout = Layout(tensors)
    for name, view in layout.views(layout.pack(tensors)):
        assert view.dtype == tensors[name].dtype and torch.equal(view, tensors[name])


def test_what_travels_narrow_takes_half_the_bytes():
    tensors = {"w": torch.randn(1000), "count": torch.tensor(3)}
    narrow = Layout(tensors, frozenset({"w"}), torch.bfloat16)
    assert Layout(tensors).nbytes == 4000 + 16 and narrow.nbytes == 2000 + 16
    found = dict(narrow.views(narrow.pack(tensors)))
    assert found["count"] == 3
    assert torch.equal(found["w"], tensors["w"].bfloat16())


def test_a_momentum_costs_nothing_where_there_is_none():
    weights = numbers(0)
    rule = OneByOne(PARTS, weights, LR, 0.0)
    assert list(rule.state) == ["sync.count"]
    (ticket, delta), *_ = deltas(1)
    before = weights["a"].clone()
    assert rule.apply(ticket, [delta]) == pytest.approx(
        sum(float((d / PARTS).square().sum()) for d in delta.values()) ** 0.5
    )
    torch.testing.assert_close(weights["a"], before - LR * delta["a"] / PARTS)
