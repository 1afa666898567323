"""A checkpoint's whole life on one page: commit, verify, read, publish, roll back, prune."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from backends.checkpoint import (
    ReaderLease,
    Run,
    Staging,
    commit,
    prune,
    publish,
    read_channel,
    read_tensors,
    rollback,
    verify,
)


def make(run: Run, step: int, value: float):
    shards = [{"a": torch.full((3, 2), value)}, {"b": torch.full((4,), value).bfloat16()}]
    ranks = [Staging(run, step, 0, rank) for rank in range(2)]
    ranks[0].create()
    parts = [ranks[i].write_shard(i, 2, shards[i]) for i in range(2)]
    expected = {n: (tuple(t.shape), t.dtype) for shard in shards for n, t in shard.items()}
    return commit(
        ranks[0],
        parts,
        model={"class": "model:Toy", "config": {"width": 2}},
        expected=expected,
        position=step * 10,
        evaluation={"accuracy": 0.5, "loss": float("nan")},
        probe=None,
        parent=None,
    )


def test_the_whole_life(tmp_path):
    run = Run(tmp_path / "run")
    manifests = {step: make(run, step, float(step)) for step in (1, 2, 3)}
    assert run.steps() == [1, 2, 3]
    assert run.latest().hash == verify(run, 3).hash
    assert run.latest().hash == manifests[3].hash
    tensors = read_tensors(run.folder(2), manifests[2])
    assert tensors["a"].eq(2).all()
    assert tensors["b"].dtype == torch.bfloat16
    plain = load_file(run.folder(2) / "model" / "model-00001-of-00002.safetensors")
    assert torch.equal(plain["a"], tensors["a"])
    assert publish(run, "stable", 1).generation == 1
    assert publish(run, "stable", 2).generation == 2
    assert rollback(run, "stable").step == 1
    assert read_channel(run, "stable").generation == 3
    with ReaderLease(run, 2, "reader"):
        assert prune(run, keep=1) == []
    assert prune(run, keep=1) == [2]
    assert run.steps() == [1, 3]
