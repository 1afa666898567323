"""What a commit checks before anything becomes visible."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace

import pytest
import torch

from backends.checkpoint import (
    BadRecord,
    Busy,
    CommitAborted,
    Manifest,
    Part,
    Probe,
    Run,
    Staging,
    StepExists,
    TensorRecord,
    is_whole,
    quarantine,
)
from tests.backends.checkpoint.samples import finish, loads, make, staged, tensors


@pytest.fixture
def run(root):
    return Run(root)


def aborts(run, staging, parts, match, **changes):
    with pytest.raises(CommitAborted, match=match):
        finish(staging, parts, **changes)
    assert run.steps() == []
    assert [path.name for path in run.ckpt.iterdir()] == []
    assert list(run.leases.glob("*.json")) == []


def test_a_missing_tensor_aborts(run):
    staging, parts = staged(run, 1)
    del parts[1].tensors["b.weight"]
    aborts(run, staging, parts, "1 tensors were not written, b.weight")


def test_a_tensor_that_is_not_the_models_aborts(run):
    staging, parts = staged(run, 1)
    wanted = {"a.weight": ((3, 2), "F32"), "a.steps": ((), "I64"), "b.empty": ((0, 4), "F32")}
    aborts(run, staging, parts, "not the model's, b.weight", expected=wanted)


def test_a_tensor_written_by_two_ranks_aborts(run):
    staging, parts = staged(run, 1)
    parts[1].tensors["a.weight"] = parts[0].tensors["a.weight"]
    aborts(run, staging, parts, "rank 1: tensor a.weight is in .* and in ")


@pytest.mark.parametrize("change", [{"shape": (2, 3)}, {"dtype": "I32"}])
def test_another_shape_or_dtype_aborts(run, change):
    staging, parts = staged(run, 1)
    parts[0].tensors["a.weight"] = replace(parts[0].tensors["a.weight"], **change)
    aborts(run, staging, parts, "tensor a.weight should be")


def test_two_tensors_over_the_same_bytes_abort(run):
    staging, parts = staged(run, 1)
    record = parts[1].tensors["b.weight"]
    parts[0].tensors["a.steps"] = replace(
        parts[0].tensors["a.weight"], shape=(), dtype="I64", end=record.start
    )
    aborts(run, staging, parts, "byte range")


def test_a_file_written_by_two_ranks_aborts(run):
    staging, parts = staged(run, 1)
    aborts(run, staging, [*parts, Part(1, parts[0].files)], "was written by another rank too")


def test_a_rank_that_handed_in_nothing_aborts(run):
    staging, parts = staged(run, 1)
    aborts(run, staging, parts, "rank 2: nothing was handed in", ranks=3)


def test_a_shard_that_nobody_wrote_aborts(run):
    staging = Staging(run, 1, "1", 0)
    staging.create()
    part = staging.write_shard(0, 2, tensors(1))
    aborts(run, staging, [part], "one of 2 files, but 1 were written", ranks=1)


def test_a_file_that_vanished_or_changed_its_size_aborts(run):
    staging, parts = staged(run, 1)
    os.truncate(staging.folder / "state/.metadata", 3)
    aborts(run, staging, parts, r"state/.metadata should have 9 bytes, has 3")
    staging, parts = staged(run, 1)
    (staging.folder / "model/model-00002-of-00002.safetensors").unlink()
    aborts(run, staging, parts, "should have .* bytes, has gone")


def test_a_file_that_no_rank_adopted_aborts(run):
    staging, parts = staged(run, 1)
    (staging.folder / "state/forgotten").write_text("x")
    aborts(run, staging, parts, "state/forgotten is in the folder, but no rank adopted it")


def test_a_link_among_the_files_aborts(run, tmp_path):
    staging, parts = staged(run, 1)
    (staging.folder / "state/link").symlink_to(tmp_path)
    aborts(run, staging, parts, "state/link is in the folder")


@pytest.mark.parametrize("ties", [{"b.weight": "a.weight"}, {"c": "nobody"}])
def test_a_tie_that_is_none_aborts(run, ties):
    staging, parts = staged(run, 1)
    aborts(run, staging, parts, "tie .* once and .* never", ties=ties)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": {"class": "m:M", "config": {"x": object()}}}, "config|JSON"),
        ({"model": {"class": "m:M", "config": {1: 2}}}, "str"),
        ({"position": -1}, "position must not be negative"),
        ({"evaluation": {"loss": "low"}}, "ValueError"),
        ({"expected": {"a": ((1,), torch.complex128)}}, "cannot be stored"),
    ],
)
def test_what_cannot_be_recorded_aborts(run, changes, match):
    staging, parts = staged(run, 1)
    aborts(run, staging, parts, match, **changes)


def test_a_step_is_never_committed_twice(run):
    first = make(run, 1)
    with pytest.raises(StepExists, match="step 1 is committed already"):
        Staging(run, 1, "2", 0).create()
    assert run.manifest(1).hash == first.hash


def test_the_slower_of_two_writers_of_a_step_aborts(run):
    slow = staged(run, 1, "slow")
    first = make(run, 1, "quick")
    with pytest.raises(CommitAborted, match="step 1 is committed already"):
        finish(*slow)
    assert run.latest().hash == first.hash
    assert [path.name for path in run.ckpt.glob(".*")] == []


def test_one_attempt_has_one_live_writer(run):
    staging, parts = staged(run, 1)
    with pytest.raises(Busy, match="live process"):
        Staging(run, 1, "1", 0).create()
    assert finish(staging, parts).step == 1


def test_a_broken_step_makes_way_for_its_second_writing(run):
    make(run, 1)
    make(run, 2)
    os.truncate(run.folder(2) / "model/model-00001-of-00002.safetensors", 10)
    assert run.latest().step == 1
    second = make(run, 2, "again")
    assert run.latest().hash == second.hash
    assert loads(run, 2)
    assert [path.name for path in run.ckpt.glob(".*")] == []


def test_a_broken_step_stays_when_its_second_writing_fails(run):
    make(run, 1)
    (run.folder(1) / "MANIFEST.json").unlink()
    staging, parts = staged(run, 1, "again")
    with pytest.raises(CommitAborted):
        finish(staging, parts[:1])
    assert (run.folder(1) / "model").is_dir()
    assert make(run, 1, "third").step == 1


def test_parts_travel_between_ranks(run):
    staging, parts = staged(run, 1)
    assert finish(staging, pickle.loads(pickle.dumps(parts))).step == 1


def test_the_manifest_keeps_what_it_was_given(run):
    probe = Probe({"x": [[1.5, float("-inf")]]}, {"y": [[float("nan")]], "n": [3]}, 1e-2, 0.0)
    staging, parts = staged(run, 7)
    manifest = finish(
        staging, parts, probe=probe, parent="0" * 32, evaluation={"loss": float("inf"), "a": 1}
    )
    again = run.manifest(7)
    assert again.hash == manifest.hash
    assert again.probe.inputs == probe.inputs
    assert str(again.probe.outputs["y"]) == "[[nan]]"
    assert again.probe.outputs["n"] == [3]
    assert (again.probe.rtol, again.probe.atol) == (1e-2, 0.0)
    assert again.evaluation == {"loss": float("inf"), "a": 1.0}
    assert (again.run, again.attempt, again.parent) == ("run", "1", "0" * 32)
    assert again.version == f"7-{manifest.hash[:8]}"
    assert is_whole(run, 7)


def test_a_structure_is_the_tensors_forms_and_the_models_configuration(run):
    first, second = make(run, 1), make(run, 2)
    assert first.structure_id == second.structure_id
    staging, parts = staged(run, 3)
    other = finish(staging, parts, model={"class": "model:Toy", "config": {"width": 3}})
    assert other.structure_id != first.structure_id


def test_adopting_takes_files_and_whole_folders_but_nothing_from_outside(run, tmp_path):
    staging = Staging(run, 1, "1", 0)
    staging.create()
    deep = staging.folder / "state/a/b"
    deep.mkdir(parents=True)
    (deep / "__0_0.distcp").write_bytes(b"x" * 3_000_000)
    (staging.folder / "state/empty").touch()
    part = staging.adopt(["state/a", staging.folder / "state/empty"])
    assert {path: record.bytes for path, record in part.files.items()} == {
        "state/a/b/__0_0.distcp": 3_000_000,
        "state/empty": 0,
    }
    (tmp_path / "outside").touch()
    with pytest.raises(BadRecord, match="is not below"):
        staging.adopt([tmp_path / "outside"])
    with pytest.raises(BadRecord, match="not a plain relative path"):
        staging.adopt(["state/../../../etc"])
    with pytest.raises(FileNotFoundError):
        staging.adopt(["state/nothing"])
    staging.discard()


@pytest.mark.parametrize("attempt", ["", "a/b", "..", "a-b", "x" * 65])
def test_attempts_that_are_no_plain_words_are_refused(run, attempt):
    with pytest.raises(BadRecord, match="attempt"):
        Staging(run, 1, attempt, 0)


@pytest.mark.parametrize(("index", "count"), [(-1, 1), (1, 1), (0, 0), (0, 100_000)])
def test_shard_numbers_are_checked(run, index, count):
    with pytest.raises(BadRecord, match="index counts from 0"):
        Staging(run, 1, 1, 0).write_shard(index, count, {})


def test_quarantine_does_not_touch_the_resume(run):
    manifest = make(run, 1)
    quarantine(run, manifest.hash, {"reason": "slow"})
    assert run.latest().hash == manifest.hash


def test_a_manifest_is_frozen_and_readable_by_name(run):
    manifest = make(run, 1)
    assert isinstance(manifest, Manifest)
    record = manifest.tensors["a.weight"]
    assert isinstance(record, TensorRecord)
    assert record.end - record.start == 24
    with pytest.raises(AttributeError):
        manifest.step = 2
