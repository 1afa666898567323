"""One rank's life: what it commits and publishes, where it goes on, and why it stops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, quarantine, read_channel, read_tensors
from backends.checkpoint.mirror import newest_channel
from backends.checkpoint.objects import Store
from tests.trainer.ranks import journal, weight_hashes
from tests.trainer.tiny import Points, Tiny
from trainer.errors import (
    BadPlugin,
    CommitFailed,
    ConfigError,
    Diverged,
    RunBusy,
    RunMismatch,
    RunUnwritable,
)
from trainer.lock import RunLock
from trainer.process import dry_run


def test_a_version_is_what_backends_need(run, train_here, capsys):
    """Manifest, probe, resume state; the channel behind the gate; and a short summary."""
    assert train_here() == 0
    manifest = Run(run).manifest(30)
    assert manifest.model == {"class": "tests.trainer.tiny:Tiny", "config": {}}
    assert manifest.position == 30 * 24
    assert set(manifest.evaluation) == {"loss", "accuracy"}
    assert manifest.parent == Run(run).manifest(25).hash
    assert {"state/.metadata", "state/trainer.json", "model/config.json"} <= set(manifest.files)

    model = Tiny()
    model.load_state_dict(read_tensors(Run(run).folder(30), manifest))
    model.eval()
    assert manifest.probe is not None
    inputs = torch.tensor(manifest.probe.inputs["x"])
    assert torch.equal(inputs, Points().held_out()["x"][:4])
    wanted = torch.tensor(manifest.probe.outputs["scores"])
    torch.testing.assert_close(model.infer(inputs)["scores"], wanted)
    assert set(manifest.probe.outputs) == {"scores"}  # a label may flip at a tie

    held_out = Points().held_out()
    with torch.no_grad():
        loss, metrics = model.loss(held_out)
    assert manifest.evaluation["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert manifest.evaluation["accuracy"] == pytest.approx(float(metrics["accuracy"]))

    channel = read_channel(Run(run), "stable")
    assert channel is not None and channel.hash == manifest.hash
    held, version, channel_line, time_line = capsys.readouterr().out.splitlines()[-4:]
    assert held.startswith("held out   loss ") and "accuracy" in held
    assert version == f"version    {manifest.version}"
    assert channel_line == "channel    stable, generation 1"
    assert time_line.startswith("time       30 steps in ")


def test_a_run_that_goes_on_is_the_run_that_never_stopped(run, train_here, tmp_path):
    """Whatever the checkpoints' rhythm and mode: weights, moments, evaluation and position."""
    assert train_here(f"run={tmp_path / 'whole'}") == 0
    assert train_here("steps=10", "schedule.name=constant", f"run={tmp_path / 'other'}") == 0
    constant = ("schedule.name=constant", "checkpoint.mode=sync", "checkpoint.every=4")
    assert train_here("steps=7", *constant) == 0
    assert train_here("steps=8", *constant) == 0
    assert train_here("steps=10", *constant) == 0
    assert weight_hashes(run, 10) == weight_hashes(tmp_path / "other", 10)
    assert [line["step"] for line in journal(run, "start")] == [0, 7, 8]
    assert Run(run).steps() == [4, 7, 8, 10]
    other = Run(tmp_path / "other").manifest(10)
    states = [f for f in other.files if f.startswith("state/__")]
    assert states and all(Run(run).manifest(10).files[f] == other.files[f] for f in states)


def test_more_steps_go_on_and_no_more_steps_do_nothing(run, train_here, capsys):
    assert train_here("steps=5") == 0
    assert train_here("steps=5") == 0
    assert "nothing to train: the run is at step 5" in (said := capsys.readouterr().out)
    assert "stable, generation 1 (as before)" in said
    assert train_here("steps=10") == 0
    assert train_here("steps=5") == 0
    channel = read_channel(Run(run), "stable")
    assert channel is not None and (channel.step, channel.generation) == (10, 2)
    assert "stable stays: step 10 is past steps = 5" in capsys.readouterr().out


def test_a_run_that_died_before_publishing_publishes(run, train_here):
    assert train_here("steps=5") == 0
    (run / "channels" / "stable.json").unlink()
    assert train_here("steps=5") == 0
    channel = read_channel(Run(run), "stable")
    assert channel is not None and channel.step == 5


def test_the_gate_keeps_a_bad_version_from_the_channel(run, train_here, capsys):
    assert train_here("steps=5", "publish.require=accuracy >= 0.5 and loss < 1e-9") == 0
    assert Run(run).steps() == [5]
    assert read_channel(Run(run), "stable") is None
    assert "stable stays as it was: the gate asks for loss < 1e-09" in capsys.readouterr().out


def test_a_gate_on_what_is_not_measured_stops_at_the_first_step(run, train_here):
    with pytest.raises(ConfigError, match=r"publish\.require: the model reports no 'f1'"):
        train_here("publish.require=f1 > 0.5")
    assert Run(run).steps() == []


def test_a_broken_checkpoint_is_passed_over_and_said(run, train_here, tmp_path, capsys):
    assert train_here("steps=15", "checkpoint.every=5") == 0
    whole = weight_hashes(run, 15)
    state = next((run / "ckpt" / "step-00000015" / "state").glob("__0_*"))
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    (run / "ckpt" / "step-00000010" / "model" / "model-00001-of-00001.safetensors").unlink()
    assert train_here("steps=15") == 0
    said = capsys.readouterr().out
    assert "step 15 is damaged" in said and "step 10 is damaged" in said
    assert "channel stable points at it" in said
    assert f"going on from {Run(run).manifest(5).version} instead" in said
    assert weight_hashes(run, 15) == whole
    assert len(list((run / "ckpt").glob(".broken-*"))) == 2


def test_nothing_whole_left_starts_from_the_beginning(run, train_here, capsys):
    assert train_here("steps=5") == 0
    whole = weight_hashes(run, 5)
    (run / "ckpt" / "step-00000005" / "MANIFEST.json").write_text("{}")
    assert train_here("steps=5") == 0
    assert "no whole checkpoint is left" in capsys.readouterr().out
    assert weight_hashes(run, 5) == whole


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.config.width=24", "holds tests.trainer.tiny:Tiny with {}"),
        ("seed=4", "trained with seed = 3, now it is 4"),
        ("data.config.samples=190", "trained with samples = 200, now it is 190"),
        ("optimizer.name=sgd", "trained with optimizer = 'adamw', now it is 'sgd'"),
    ],
)
def test_a_run_of_something_else_is_refused(run, train_here, override, said):
    assert train_here("steps=5") == 0
    with pytest.raises(RunMismatch) as caught:
        train_here("steps=10", override)
    assert said in str(caught.value) and "run=FOLDER" in str(caught.value)
    assert Run(run).steps() == [5]


def test_a_loss_that_is_no_number_stops_with_the_last_good_version(run, train_here):
    with pytest.raises(Diverged) as caught:
        # Evaluations call the loss too: 5 steps, 1 evaluation, then the 8th call is step 7.
        train_here("model.config.poison=8")
    version = Run(run).manifest(5).version
    assert "step 7: the loss is nan" in str(caught.value) and version in str(caught.value)
    assert Run(run).steps() == [5]
    assert journal(run, "error")[0]["code"] == "diverged"


def test_weights_that_are_no_numbers_are_never_committed(run, train_here):
    with pytest.raises((Diverged, CommitFailed)):
        train_here(
            "steps=5",
            "optimizer.lr=1e3",
            "optimizer.name=sgd",
            "optimizer.clip=1e9",
            "schedule.warmup=0",
            "checkpoint.every=1",
            "optimizer.weight_decay=10",
        )
    for step in Run(run).steps():
        tensors = read_tensors(Run(run).folder(step), Run(run).manifest(step))
        assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def test_retention_keeps_what_it_is_asked_to(run, train_here):
    assert train_here("checkpoint.keep=2", "checkpoint.keep_every=10", "checkpoint.every=4") == 0
    assert Run(run).steps() == [20, 28, 30]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunUnwritable, match=r"run: nothing can be written into .*file.*run=FOLDER"):
        RunLock(tmp_path / "file")


def test_a_run_in_use_is_refused(run, train_here):
    lock = RunLock(run)
    try:
        with pytest.raises(RunBusy, match="is being trained by process"):
            train_here()
    finally:
        lock.release()
    assert Run(run).steps() == []
    assert train_here("steps=1") == 0


def test_a_quarantined_version_is_not_published(run, train_here):
    from backends.checkpoint import Quarantined

    assert train_here("steps=5", "publish.require=accuracy > 0.999 and loss < 0") == 0
    quarantine(Run(run), Run(run).manifest(5).hash, {"reason": "test"})
    with pytest.raises(Quarantined):
        train_here("steps=5")


def test_a_shared_folder_can_move(run, train_here, tmp_path):
    """Nothing in a run says where it lies."""
    assert train_here("steps=5") == 0
    shutil.move(run, tmp_path / "moved")
    assert train_here("steps=6", f"run={tmp_path / 'moved'}") == 0
    assert Run(tmp_path / "moved").steps() == [5, 6]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.class=tests.trainer.tiny:Points", "is no torch.nn.Module"),
        ("model.class=torch.nn:Linear", "has no method loss"),
        ("model.config.depth=3", "model.config: tests.trainer.tiny:Tiny was called with: got an"),
        ("model.class=tests.trainer.test_process:Vector", "loss is none"),
        ("model.class=tests.trainer.test_process:Wide", "infer() takes 'x' as (9,)"),
    ],
)
def test_models_that_do_not_fit_are_refused(train_here, override, said):
    with pytest.raises(BadPlugin) as caught:
        train_here(override)
    assert said in str(caught.value)


class Vector(Tiny):
    def loss(self, batch):  # type: ignore[no-untyped-def]
        return self(batch["x"]), {}


class Wide(Tiny):
    from backends.wire import Signature, TensorSpec

    signature = Signature(
        inputs=(TensorSpec("x", "FP32", (9,)),), outputs=(TensorSpec("scores", "FP32", (3,)),)
    )


def test_a_dry_run_shows_the_plan_and_writes_nothing(run, configure, capsys):
    from trainer.elastic import Place

    dry_run(configure("data.micro_batch=4"), Place(), 2)
    said = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    # 16×8+16, 2×16 of the norm, 2×(16×16+16), 3×16+3; the head's three rows are two and one.
    assert lines["parameters"] == "771, 394 on a rank"
    assert lines["mesh"] == "2 ranks: dp_shard 2"
    assert "30 × 24 samples (12 on rank 0 in 3 passes) = 720 samples, 3.6 epochs" in lines["steps"]
    assert lines["publish"] == "to stable if accuracy >= 0.5"
    assert "weights" in lines["memory"] and "every 5 steps" in lines["checkpoints"]
    assert not run.exists()


def test_ranks_that_do_not_fit_the_mesh_are_refused(configure, run):
    from trainer.process import train

    with pytest.raises(ConfigError, match=r"train.toml: parallel: .* does not fit 1 rank"):
        train(configure("parallel.dp_shard=2"), {})
    assert not run.exists()


def test_metrics_survive_a_line_cut_short(run: Path, train_here):
    assert train_here("steps=2") == 0
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert train_here("steps=3") == 0
    assert [line["step"] for line in journal(run, "step")] == [1, 2, 3]
    assert len(journal(run, "end")) == 1


def test_what_is_published_is_put_into_the_store(run, train_here, tmp_path, capsys):
    store = f"file://{tmp_path}/store"
    assert train_here("steps=5", f"publish.store={store}") == 0
    assert f"and in {store}" in capsys.readouterr().out
    record = newest_channel(Store(store), "stable")
    assert record is not None and record.version == Run(run).manifest(5).version
    # A store that fails does not undo what was published.
    (tmp_path / "file").write_text("")
    assert train_here("steps=10", f"publish.store=file://{tmp_path}/file/store") == 0
    assert "NOT in file://" in capsys.readouterr().out
    channel = read_channel(Run(run), "stable")
    assert channel is not None and channel.step == 10


def test_versions_are_published_while_it_trains(run, train_here, capsys):
    every = ("steps=30", "checkpoint.every=5", "publish.every=10", "checkpoint.keep=1")
    assert train_here(*every) == 0
    channel = read_channel(Run(run), "stable")
    assert channel is not None
    assert [entry.step for entry in (*channel.previous, channel.entry)] == [10, 20, 30]
    assert [line["step"] for line in journal(run, "published")] == [10, 20, 30]
    assert "step 20  channel: stable, generation 2" in capsys.readouterr().out
    # Retention spares what the channel pointed at, and where a rollback would have gone.
    assert Run(run).steps() == [10, 20, 30]


def test_what_the_gate_refuses_on_the_way_is_committed_only(run, train_here):
    gate = ("publish.require=loss < 1e-9", "steps=20", "checkpoint.every=5", "publish.every=10")
    assert train_here(*gate) == 0
    assert read_channel(Run(run), "stable") is None
    refusals = journal(run, "not_published")
    assert len(refusals) == 2 and "loss < 1e-09" in refusals[0]["reason"]


@pytest.mark.parametrize("every", ["3", "12"])
def test_what_is_published_on_the_way_must_be_committed_there(train_here, every):
    with pytest.raises(ConfigError, match=r"multiple of checkpoint\.every"):
        train_here("checkpoint.every=5", f"publish.every={every}")


def test_a_full_disk_is_named_where_torch_does_not(train_here, monkeypatch):
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    def fail(*_: object) -> None:
        raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(FileSystemWriter, "write_data", fail)
    monkeypatch.setattr(
        "trainer.state.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0)
    )
    with pytest.raises(CommitFailed, match=r"unexpected pos 704 vs 598; the disk has 0 B left"):
        train_here("steps=5")
