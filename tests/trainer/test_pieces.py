"""Parts of a rank by themselves: the staged copy, signals, the display."""

from __future__ import annotations

import io
import signal

import pytest
import torch
from torch import nn

from tests.trainer.tiny import Filled, Tiny
from trainer.config import OptimizerConfig
from trainer.elastic import AGAIN_S, Place, Stop
from trainer.errors import BadPlugin, ConfigError
from trainer.metrics import PLAIN_SECONDS, Plain
from trainer.optim import Optimizer
from trainer.parallel import Alone
from trainer.pulse import Pulse, Totals
from trainer.state import Snapshot, TrainState, weights
from trainer.sync import Gradients


def test_what_is_staged_does_not_change_with_the_live_tensors():
    model = Tiny()
    optimizer = Optimizer(dict(model.named_parameters()), OptimizerConfig(lr=0.1))
    state = TrainState(model, optimizer, Gradients(Alone()))
    snapshot = Snapshot(state, None)
    snapshot.take()
    taken = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    assert {"model.norm.running_mean", "optimizer.mean.head.bias"} <= set(taken)
    with torch.no_grad():
        for tensor in state.tensors().values():
            tensor.add_(1)
    assert all(torch.equal(snapshot.tensors[name], taken[name]) for name in taken)
    snapshot.take()
    for name, tensor in state.tensors().items():
        assert torch.equal(snapshot.tensors[name], tensor)


def test_tied_weights_are_stored_once():
    found = weights(Filled())
    assert found.ties == {"twin.weight": "middle.weight"}
    assert "twin.weight" not in found.stored and "scale" in found.stored


def test_state_that_is_no_tensor_is_refused():
    class Extra(Tiny):
        def get_extra_state(self) -> object:
            return {"a": 1}

    with pytest.raises(BadPlugin, match="_extra_state"):
        weights(Extra())


def test_a_signal_asks_to_stop_and_only_a_late_second_one_interrupts():
    now = [100.0]
    stop = Stop(lambda: now[0])
    before = signal.getsignal(signal.SIGINT)
    stop.listen()
    try:
        assert not stop.asked
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # torchrun's, for the same Ctrl-C
        assert stop.signal == signal.SIGINT
        now[0] += AGAIN_S + 0.1
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stop.close()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_place_is_read_from_the_environment():
    assert Place.of({}) == Place()
    environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert Place.of(environ) == Place(rank=3, ranks=4, local_rank=1, restarts=2)


def test_a_log_gets_few_lines():
    now, out = [0.0], io.StringIO()
    view = Plain(out, 100, lambda: now[0])
    for step in range(1, 101):
        now[0] += PLAIN_SECONDS / 20
        view.progress(step, {"accuracy": 0.5, "loss": 1.25}, {"samples_per_s": 12_345.6})
    first, second, *rest = out.getvalue().splitlines()
    assert first == "step 20/100  loss 1.25  accuracy 50.0%  12,346 samples/s"
    # 20 steps took 5 s, 60 are left.
    assert second == f"{first.replace('20/', '40/')}  0:00:15 left"
    assert len(rest) == 3


def test_a_model_reports_the_same_metrics_at_every_step():
    pulse = Pulse(1, 1, torch.device("cpu"))
    totals = Totals()
    totals.add(torch.tensor(2.0), {"b": torch.tensor(4.0), "a": torch.tensor(1.0)}, 0.25)
    totals.add(torch.tensor(2.0), {"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, 0.75)
    norm = pulse.beat(1, torch.tensor(9.0, dtype=torch.float64), totals, False, True)
    assert float(norm) == 3.0
    (reading,) = pulse.readings()
    assert (reading.loss, dict(reading.metrics)) == (2.0, {"a": 1.0, "b": 1.0})
    assert reading.failed and not reading.stop and reading.finite
    less = Totals()
    less.add(torch.tensor(2.0), {}, 1.0)
    with pytest.raises(BadPlugin, match="metrics changed"):
        pulse.beat(2, torch.tensor(0.0, dtype=torch.float64), less, False, False)


class Chance(Tiny):
    """Uses an operation whose result may differ from run to run."""

    def loss(self, batch):  # type: ignore[no-untyped-def]
        x = batch["x"].clone()
        x.put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
        return super().loss({**batch, "x": x})


def test_an_operation_that_cannot_repeat_is_named(train_here):
    chance = "model.class=tests.trainer.test_pieces:Chance"
    with pytest.raises(ConfigError, match=r"deterministic: put_ .* set it to false"):
        train_here(chance, "steps=2")
    torch.set_deterministic_debug_mode("default")  # as in the process of the next start
    assert train_here(chance, "steps=2", "deterministic=false") == 0


def test_blocks_of_a_list_are_units_of_sharding(monkeypatch):
    from trainer import parallel

    monkeypatch.setattr(parallel, "UNIT_PARAMETERS", 100)
    model = Tiny()
    assert list(parallel.units(model)) == list(model.blocks)
    assert list(parallel.units(nn.ModuleList([nn.Linear(2, 2)]))) == []
