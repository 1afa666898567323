"""What a checkpoint of another method or other replicas gives a run."""

from __future__ import annotations

from trainer.sync.restore import choose_sources

TWO = [
    "model.w",
    "sync.shape",
    "sync.momentum.w",
    "sync.pending.w",
    *(f"replica.{r}.{name}" for r in (0, 1) for name in ("model.w", "optimizer.mean.w")),
]


def test_the_same_replicas_read_their_own():
    wanted = [name for name in TWO if "replica.0" not in name]
    assert choose_sources(wanted, TWO, same=True) == {name: name for name in wanted}


def test_a_third_replica_takes_a_saved_ones_moments_and_the_agreed_parameters():
    wanted = ["model.w", "sync.momentum.w", "sync.pending.w", "replica.2.model.w"]
    wanted += ["replica.2.optimizer.mean.w", "replica.3.optimizer.mean.w"]
    assert choose_sources(wanted, TWO, same=False) == {
        "model.w": "model.w",
        "sync.momentum.w": "sync.momentum.w",
        "replica.2.optimizer.mean.w": "replica.0.optimizer.mean.w",
        "replica.3.optimizer.mean.w": "replica.1.optimizer.mean.w",
    }


def test_methods_can_change_and_what_lacks_is_asked_for():
    gradients = ["model.w", "optimizer.mean.w"]
    assert choose_sources(gradients, TWO, same=False)["optimizer.mean.w"] == (
        "replica.0.optimizer.mean.w"
    )
    accumulate = ["model.w", "replica.1.optimizer.mean.w", "sync.shape"]
    assert choose_sources(accumulate, gradients, same=False) == {
        "model.w": "model.w",
        "replica.1.optimizer.mean.w": "optimizer.mean.w",
    }
    assert choose_sources(["optimizer.square.w"], gradients, same=False) == {
        "optimizer.square.w": "optimizer.square.w"
    }
