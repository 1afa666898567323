"""Splits of layers against every split there is."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.partition.layers import Cost, DoesNotFit, Pipeline

costs = st.builds(
    Cost, st.integers(0, 20).map(float), fixed=st.integers(0, 9), activations=st.integers(0, 9)
)


@st.composite
def pipelines(draw):
    layers = tuple(draw(st.lists(costs, min_size=1, max_size=7)))
    stages, passes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    memory = draw(st.none() | st.integers(5, 120))
    return Pipeline(layers, draw(costs), draw(costs), stages, passes, memory)


def every_split(layers: int, stages: int):
    least = 1 if layers >= stages else 0
    for cut in combinations(range(layers + stages - 1), stages - 1):
        ends = (-1, *cut, layers + stages - 1)
        counts = tuple(b - a - 1 for a, b in pairwise(ends))
        if min(counts) >= least:
            yield counts


@given(pipelines())
def test_no_split_is_better(pipeline):
    fitting = [s for s in every_split(len(pipeline.layers), pipeline.stages) if pipeline.fits(s)]
    if not fitting:
        with pytest.raises(DoesNotFit):
            pipeline.best()
        return
    found = pipeline.best()
    assert found in fitting
    assert pipeline.seconds(found) == min(map(pipeline.seconds, fitting))


def test_a_heavy_head_gets_fewer_layers():
    even = (Cost(1.0),) * 8
    assert Pipeline(even, Cost(0.0), Cost(0.0), 2, 4).best() == (4, 4)
    assert Pipeline(even, Cost(0.0), Cost(4.0), 2, 4).best() == (6, 2)


def test_earlier_stages_hold_more_activations():
    """Under 1F1B the first of two stages holds two micro-batches, the last one."""
    layers = (Cost(1.0, fixed=1, activations=10),) * 6
    free = Pipeline(layers, Cost(0), Cost(0), 2, 8)
    assert free.best() == (3, 3)
    assert Pipeline(layers, Cost(0), Cost(0), 2, 8, memory=44).best() == (2, 4)
    assert Pipeline(layers, Cost(0), Cost(0), 2, 1, memory=44).best() == (3, 3)
    with pytest.raises(DoesNotFit, match="6 layers over 2 stages keeps each within 43"):
        Pipeline(layers, Cost(0), Cost(0), 2, 8, memory=43).best()


def test_many_layers_are_no_trouble():
    layers = tuple(Cost(float(1 + index % 7)) for index in range(90))
    found = Pipeline(layers, Cost(5.0), Cost(9.0), 8, 32).best()
    assert sum(found) == 90 and len(found) == 8
