"""The average at a server, against one that is moved step by step."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.average import Average
from trainer.server.tickets import Ticket
from trainer.server.trail import Trail

BATCH = 12
# Of a whole step and of several; and of a third of one, as they come under staleness.
PORTIONS = st.lists(st.sampled_from([4, 12, 24, 60]), min_size=1, max_size=12)


def average_of(parameter: nn.Parameter) -> Average:
    return Average({"w": parameter}, 0.8, nn.Module())


@given(PORTIONS)
def test_it_moves_once_a_step_and_toward_what_stood_then(portions: list[int]):
    ours, theirs = (nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    trail, plain = Trail(average_of(ours), BATCH), average_of(theirs)
    samples = 0
    for number, portion in enumerate(portions):
        value = 1.0 + (7 * number) % 5
        trail.before([Ticket(number, samples, 1, portion, 1)])
        for step in range(samples // BATCH + 1, (samples + portion) // BATCH + 1):
            if step == (samples + portion) // BATCH:
                theirs.data.fill_(value)
            plain.update(step)
        for parameter in (ours, theirs):
            parameter.data.fill_(value)
        trail.after()
        samples += portion
    torch.testing.assert_close(trail.average.tensors, plain.tensors)
    assert trail.samples == samples
