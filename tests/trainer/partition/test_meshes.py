"""Meshes for whatever ranks there are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import ParallelConfig
from trainer.mesh import MeshPlan
from trainer.partition.meshes import fit

sizes = st.integers(1, 6)


@given(
    sizes, sizes, st.sampled_from([-1, 1, 2, 3, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 40)
)
def test_there_is_a_mesh_for_every_number_of_ranks(tp, pp, shard, replicate, ranks):
    config = ParallelConfig(tp=tp, pp=pp, dp_shard=shard, dp_replicate=replicate)
    found = fit(config, ranks)
    assert found.ranks == ranks
    try:
        asked = MeshPlan.of(config, ranks)
    except ValueError:
        return
    assert found == asked


@pytest.mark.parametrize(
    ("asked", "ranks", "found"),
    [
        ({"dp_replicate": 2, "dp_shard": 2}, 3, (1, 3, 1, 1)),
        ({"dp_replicate": 2, "dp_shard": 2}, 6, (3, 2, 1, 1)),
        ({"dp_replicate": 4, "dp_shard": 1}, 3, (3, 1, 1, 1)),
        ({"tp": 2, "pp": 2, "dp_shard": 2}, 6, (1, 3, 1, 2)),
        ({"tp": 2, "pp": 2, "dp_shard": 2}, 12, (1, 3, 2, 2)),
        ({"tp": 2, "pp": 2, "dp_shard": 2}, 7, (1, 7, 1, 1)),
        ({"pp": 4}, 2, (1, 1, 2, 1)),
    ],
)
def test_layers_stay_cut_and_data_parallelism_gives_way(asked, ranks, found):
    replicate, shard, pp, tp = found
    plan = fit(ParallelConfig(**asked), ranks)
    assert plan == MeshPlan(dp_replicate=replicate, dp_shard=shard, pp=pp, tp=tp)
