"""Training on real ranks: any number of them alike, and no kill that shows in the weights."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from backends.checkpoint import Run
from tests.trainer.ranks import (
    Ranks,
    die_after_rename,
    full_disk_at_step_10,
    full_disk_for_state,
    journal,
    slow_steps,
    small_units,
    wait_for,
    weight_hashes,
)
from tests.trainer.tiny import CONFIG

# Several launches a test: a machine that others use may take its time.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


def start(folder: Path, name: str, *overrides: str, count: int = 1, **options: object) -> Ranks:
    config = folder / f"{name}.toml"
    config.write_text(CONFIG.format(run=folder / name))
    return Ranks(folder / "logs", [str(config), *overrides], count, **options)  # type: ignore[arg-type]


def train(folder: Path, name: str, *overrides: str, count: int = 1, **options: object) -> Path:
    ranks = start(folder, name, *overrides, count=count, **options)
    assert ranks.wait() == [0] * count, ranks.log()
    return folder / name


def losses(run: Path) -> list[float]:
    """By step; where a step was done twice, the last one counts."""
    by_step = {line["step"]: line["loss"] for line in journal(run, "step")}
    return [by_step[step] for step in sorted(by_step)]


PLAIN = ("model.class=tests.trainer.tiny:Plain", "steps=12", "checkpoint.probe=2")


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    return train(folder, "alone", *PLAIN)


@pytest.mark.parametrize(
    ("name", "count", "mesh"),
    [
        ("sharded", 2, ()),
        ("copied", 2, ("parallel.dp_shard=1", "parallel.dp_replicate=2")),
        ("both", 4, ("parallel.dp_replicate=2", "data.micro_batch=2")),
        ("units", 2, ("data.micro_batch=5",)),
        ("uneven", 3, ("parallel.dp_shard=1", "parallel.dp_replicate=-1", "data.micro_batch=3")),
    ],
)
def test_any_number_of_ranks_trains_alike(folder, alone, name, count, mesh):
    hurt = dict.fromkeys(range(count), small_units) if name == "units" else None
    run = train(folder, name, *PLAIN, *mesh, count=count, hurt=hurt)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    one, other = Run(alone).manifest(12), Run(run).manifest(12)
    assert other.position == one.position == 12 * 24
    assert other.structure_id == one.structure_id
    assert dict(other.evaluation) == pytest.approx(dict(one.evaluation), rel=1e-4)
    assert len([f for f in other.files if f.endswith(".safetensors")]) == count


@pytest.mark.parametrize(
    ("name", "count", "mesh"),
    [
        ("sharded", 2, ()),
        ("copied", 2, ("parallel.dp_shard=1", "parallel.dp_replicate=2")),
        ("both", 4, ("parallel.dp_replicate=2",)),
    ],
)
def test_first_values_do_not_depend_on_the_ranks(folder, name, count, mesh):
    options = ("model.class=tests.trainer.tiny:Filled", "steps=1", "optimizer.lr=1e-30")
    options += ("publish.require=loss < 100", "optimizer.weight_decay=0")
    one = train(folder, f"filled-1-{name}", *options)
    many = train(folder, f"filled-{name}", *options, *mesh, count=count)
    assert weight_hashes(one, 1) == weight_hashes(many, 1)
    manifest = Run(many).manifest(1)
    assert manifest.ties == {"twin.weight": "middle.weight"}
    assert manifest.probe is None  # it has no infer()


def test_tied_weights_built_without_memory_go_on_exactly(folder):
    options = ("model.class=tests.trainer.tiny:Filled", "publish.require=loss < 100")
    options += ("schedule.name=constant",)
    whole = train(folder, "tied", *options, "steps=8", count=2)
    train(folder, "tied-in-two", *options, "steps=3", count=2)
    run = train(folder, "tied-in-two", *options, "steps=8", count=2)
    assert weight_hashes(run, 8) == weight_hashes(whole, 8)


def test_another_number_of_ranks_goes_on_with_the_same_samples(folder, alone):
    train(folder, "changed", *PLAIN, "steps=12", "schedule.name=constant", "steps=6", count=2)
    run = train(folder, "changed", *PLAIN, "schedule.name=constant")
    straight = train(folder, "straight", *PLAIN, "schedule.name=constant", count=2)
    assert losses(run) == pytest.approx(losses(straight), rel=1e-4)
    assert Run(run).manifest(12).position == 12 * 24


@pytest.fixture(scope="module", params=["sharded", "copied"])
def uninterrupted(folder, request) -> tuple[str, int, tuple[str, ...], Path]:
    """Three copies: among two, no order of adding could differ."""
    copied = ("parallel.dp_shard=1", "parallel.dp_replicate=3")
    count, mesh = (2, ()) if request.param == "sharded" else (3, copied)
    whole = train(folder, f"whole-{request.param}", *mesh, count=count)
    return request.param, count, mesh, whole


def test_kills_leave_no_trace_in_the_weights(folder, uninterrupted):
    """Killed between commits, while staging, and between rename and LATEST; then to the end."""
    kind, count, mesh, whole = uninterrupted
    name = f"killed-{kind}"
    run = folder / name

    ranks = start(folder, name, *mesh, count=count, hurt={0: slow_steps})
    wait_for(lambda: any(line["step"] >= 8 for line in journal(run, "step")), ranks)
    ranks.kill()
    assert ranks.wait() == [-9] * count

    ranks = start(folder, name, *mesh, count=count, hurt={0: die_after_rename})
    assert ranks.wait()[0] == -9
    assert Run(run).steps()[-1] == 15

    ranks = start(folder, name, *mesh, count=count, hurt={0: slow_steps})
    wait_for(lambda: any((run / "ckpt").glob("*-00000020*")), ranks)  # while it is written, mostly
    ranks.kill()
    ranks.wait()

    run = train(folder, name, *mesh, count=count)
    assert weight_hashes(run, 30) == weight_hashes(whole, 30)
    assert Run(run).manifest(30).evaluation == Run(whole).manifest(30).evaluation
    starts = [line["step"] for line in journal(run, "start")]
    assert starts[0] == 0 and starts == sorted(starts) and starts[-1] >= 15
    assert not list((run / "ckpt").glob(".staging-*"))


def test_a_dead_rank_ends_the_others_and_a_restart_goes_on(folder, uninterrupted):
    kind, count, mesh, whole = uninterrupted
    name = f"restarted-{kind}"
    first = start(folder, name, *mesh, count=count, hurt={1: slow_steps})
    wait_for(lambda: any(line["step"] >= 7 for line in journal(folder / name, "step")), first)
    first.kill(1)
    assert 0 not in (ended := first.wait()) and ended[1] == -9
    # As torchrun does it: the same store, the next attempt.
    second = start(folder, name, *mesh, count=count, store=first.store, restarts=1)
    assert second.wait() == [0] * count, second.log()
    assert weight_hashes(folder / name, 30) == weight_hashes(whole, 30)


@pytest.mark.parametrize("hurt", [full_disk_at_step_10, full_disk_for_state])
def test_a_rank_that_cannot_write_aborts_the_commit_for_all(folder, hurt):
    name = f"full-{hurt.__name__}"
    run = train(folder, name, "steps=20", count=2, hurt={1: hurt})
    assert Run(run).steps() == [5, 15, 20]
    (failed,) = journal(run, "commit_failed")
    assert failed["step"] == 10
    assert "rank 1" in failed["reason"] and "No space left" in failed["reason"]
    assert not list((run / "ckpt").glob(".staging-*"))
    assert Run(run).manifest(15).parent == Run(run).manifest(5).hash


def test_a_failed_commit_stops_the_run_where_the_configuration_says_so(folder):
    options = ("steps=20", "checkpoint.on_failure=stop")
    ranks = start(folder, "stopped", *options, count=2, hurt={1: full_disk_at_step_10})
    assert ranks.wait() == [1, 1]
    assert "rank 1" in ranks.log() and "The last good version is 5-" in ranks.log()
    assert Run(folder / "stopped").steps() == [5]


def test_sigterm_commits_and_the_same_command_goes_on(folder):
    run = folder / "terminated"
    ranks = start(folder, "terminated", "checkpoint.every=1000", count=2, hurt={1: slow_steps})
    wait_for(lambda: any(line["step"] >= 4 for line in journal(run, "step")), ranks)
    ranks.signal(signal.SIGTERM, 1)  # one rank hears it, all stop at the same step
    assert ranks.wait() == [143, 143], ranks.log()
    (step,) = Run(run).steps()
    assert 4 <= step < 30 and f"{step}-" in ranks.log()
    assert not journal(run, "evaluation")  # there may be no time for it
    train(folder, "terminated", "checkpoint.every=1000", count=2)
    whole = train(folder, "not-terminated", "checkpoint.every=1000", count=2)
    assert weight_hashes(run, 30) == weight_hashes(whole, 30)


def test_a_second_trainer_is_refused(folder):
    first = start(folder, "shared", "steps=1000", count=1, hurt={0: slow_steps})
    wait_for(lambda: bool(journal(folder / "shared", "step")), first)
    second = start(folder, "shared", count=2)
    assert second.wait() == [1, 1]
    assert f"is being trained by process {first.processes[0].pid}" in second.log()
    assert "run=FOLDER" in second.log()
    first.signal(signal.SIGTERM)
    assert first.wait() == [143]
