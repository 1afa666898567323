"""From a committed step to a version that can serve: what is in it, and what it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backends.checkpoint import live_leases, publish, read_channel
from backends.reload_terms import Failure, LoadFailed, Stage, Target
from backends.tensor.loading import Loader
from backends.tensor.runner import Runner
from backends.wire import Signature, TensorSpec
from tests.backends.fakes import FP32_1, OUT_1, Scale, commit_model

CPU = torch.device("cpu")


class Layers(nn.Module):
    """Has what the checkpoint does not hold: a buffer that is computed."""

    signature = Signature(FP32_1, (*OUT_1, TensorSpec("z", "FP32", (1,))), max_batch_size=4)

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, width), nn.Linear(width, 1)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("steps", torch.arange(width).float(), persistent=False)

    def infer(self, x):
        hidden = self.norm(self.first(x)) + self.steps
        return {"y": self.last(hidden), "z": x}


@pytest.fixture
def load(run):
    """Publishes and loads `model`; `load(model, beside=True, rate=…)`."""

    def load(model, *, beside=False, rate=0, stages=None, cancelled=lambda: False, **config):
        step = len(run.steps()) + 1
        commit_model(run, step, model, **config)
        publish(run, "stable", step)
        entry = read_channel(run, "stable").entry
        loader = Loader(
            code=run.root,
            device=CPU,
            runner=Runner(CPU, lambda error, rows: None),
            holder="test",
            bytes_per_second=rate,
        )
        return loader.from_checkpoint(
            run,
            Target(entry.step, entry.hash, entry.generation),
            beside=beside,
            stage=(stages if stages is not None else []).append,
            cancelled=cancelled,
        )

    return load


def test_weights_are_the_committed_ones_and_the_rest_is_as_constructed(load, run):
    torch.manual_seed(1)
    model = Layers(16).eval()
    stages = []
    version = load(model, stages=stages, width=16)
    assert stages == [Stage.LOAD, Stage.VERIFY]
    for name, tensor in model.state_dict().items():
        assert torch.equal(version.model.state_dict()[name], tensor), name
    assert torch.equal(version.model.steps, torch.arange(16).float())
    assert not version.model.training
    assert not any(parameter.requires_grad for parameter in version.model.parameters())
    x = torch.rand(3, 1)
    assert torch.equal(version.model.infer(x)["y"], model.infer(x)["y"])
    assert len(live_leases(run)) == 1
    version.release()
    assert live_leases(run) == []


def test_no_random_number_is_drawn_for_weights_that_the_checkpoint_has(load):
    model = Layers()
    state = torch.random.get_rng_state()
    load(model).release()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_what_is_discarded_takes_no_memory(load, run):
    version = load(Layers())
    tensors = [*version.model.parameters(), *version.model.buffers()]
    version.discard()
    assert {tensor.untyped_storage().nbytes() for tensor in tensors} == {0}
    assert live_leases(run) == []


class Ballast(Scale):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(factor)
        self.ballast = nn.Parameter(torch.zeros(1 << 20))


def test_the_bandwidth_cap_is_for_loads_beside_traffic(load, run):
    # 4 MiB at 1 KiB/s: capped, it would take more than an hour.
    load(Ballast(), rate=1024).release()
    looks = []

    def cancelled():
        looks.append(1)
        return len(looks) > 3

    with pytest.raises(LoadFailed) as found:
        load(Ballast(), rate=1024, beside=True, cancelled=cancelled)
    assert found.value.failure is Failure.CANCELLED
    assert live_leases(run) == []


def test_a_version_for_which_there_is_no_room_is_tried_again_later(load, run, monkeypatch):
    monkeypatch.setattr("backends.tensor.loading.room", lambda device: 1000)
    with pytest.raises(LoadFailed, match="it takes 4 MiB and 0 MiB are free") as f:
        load(Ballast())
    assert f.value.failure is Failure.TRANSIENT
    assert live_leases(run) == []


class NotAModule:
    signature = Scale.signature

    def infer(self, x):
        return {"y": x}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("tests.backends.test_loading:NotAModule", "has no load_state_dict"),
        ("tests.backends.test_loading:Layers", "Missing key"),
        ("no_such_module:Layers", "no module"),
    ],
)
def test_a_class_that_cannot_take_the_weights_is_refused(load, path, said):
    with pytest.raises(LoadFailed, match=said) as found:
        load(Scale(1.0), path=path)
    assert found.value.failure is Failure.REFUSED
