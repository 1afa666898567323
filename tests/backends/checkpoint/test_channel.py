"""Channels: generations, history, the way back, and who may move them."""

from __future__ import annotations

import os
import shutil
import threading

import orjson
import pytest

from backends.checkpoint import (
    BadRecord,
    Busy,
    ChannelMoved,
    Corrupt,
    NoRollback,
    NoSuchStep,
    Quarantined,
    Run,
    channel_names,
    is_quarantined,
    live_leases,
    publish,
    quarantine,
    read_channel,
    rollback,
)
from backends.checkpoint import channel as channel_module
from backends.checkpoint.channel import HISTORY
from backends.checkpoint.quarantine import reason
from backends.checkpoint.records import MAX_RECORD, read_record
from tests.backends.checkpoint.samples import make


@pytest.fixture
def run(root):
    run = Run(root)
    for step in (1, 2, 3):
        make(run, step)
    return run


def damage(run, step):
    path = run.folder(step) / "model/model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_channel_that_nothing_was_published_to_is_none(run):
    assert read_channel(run, "stable") is None
    assert channel_names(run) == []
    with pytest.raises(NoRollback):
        rollback(run, "stable")


def test_generations_grow_and_history_is_kept(run):
    for generation, step in enumerate((1, 2, 2, 3), start=1):
        record = publish(run, "stable", step)
        assert (record.generation, record.step) == (generation, step)
        assert record.hash == run.manifest(step).hash
        assert record.version == run.manifest(step).version
        assert read_channel(run, "stable") == record
    assert [entry.step for entry in record.previous] == [1, 2, 2]
    assert publish(run, "canary", 1).generation == 1
    assert channel_names(run) == ["canary", "stable"]
    assert live_leases(run) == []


def test_rolling_back_walks_back_and_never_forth(run):
    for step in (1, 2, 3):
        publish(run, "stable", step)
    assert [rollback(run, "stable").step for _ in range(2)] == [2, 1]
    with pytest.raises(NoRollback):
        rollback(run, "stable")
    assert read_channel(run, "stable").generation == 5
    publish(run, "stable", 3)
    assert rollback(run, "stable").step == 1
    assert [entry.step for entry in read_channel(run, "stable").previous] == [1, 2, 3, 2, 1, 3]


def test_rolling_back_leaves_out_what_cannot_be_served(run):
    for step in (1, 2, 3, 3):
        publish(run, "stable", step)
    quarantine(run, run.manifest(2).hash, {"reason": "NaN"})
    assert rollback(run, "stable").step == 1

    publish(run, "other", 1)
    publish(run, "other", 3)
    damage(run, 1)
    with pytest.raises(NoRollback):
        rollback(run, "other")
    shutil.rmtree(run.folder(1))
    with pytest.raises(NoRollback):
        rollback(run, "other")
    assert read_channel(run, "other").step == 3


def test_rolling_back_from_a_step_that_was_deleted_or_written_anew(run):
    publish(run, "stable", 1)
    publish(run, "stable", 2)
    damage(run, 2)
    make(run, 2, "again")
    assert rollback(run, "stable").step == 1
    damage(run, 1)
    publish(run, "stable", 3)
    make(run, 1, "again")
    # A step 1 is there again, but not the one that was served.
    with pytest.raises(NoRollback):
        rollback(run, "stable")


def test_the_second_of_two_who_find_the_same_fault_does_not_go_back_twice(run):
    for step in (1, 2, 3):
        seen = publish(run, "stable", step).generation
    assert rollback(run, "stable", expected=seen).step == 2
    with pytest.raises(ChannelMoved, match="generation 4, not 3"):
        rollback(run, "stable", expected=seen)
    assert read_channel(run, "stable").step == 2


def test_publishing_can_insist_on_what_it_saw(run):
    assert publish(run, "stable", 1, expected=0).generation == 1
    with pytest.raises(ChannelMoved):
        publish(run, "stable", 2, expected=0)
    assert publish(run, "stable", 2, expected=1).generation == 2


def test_only_what_is_whole_and_not_in_quarantine_is_published(run):
    publish(run, "stable", 1)
    damage(run, 2)
    with pytest.raises(Corrupt):
        publish(run, "stable", 2)
    hash = run.manifest(3).hash
    quarantine(run, hash, {"path": "model/x", "expected": "a", "found": "b"})
    quarantine(run, hash, {"reason": "later"})
    assert is_quarantined(run, hash)
    assert reason(run, hash) == {"path": "model/x", "expected": "a", "found": "b"}
    with pytest.raises(Quarantined, match="model/x"):
        publish(run, "stable", 3)
    with pytest.raises(NoSuchStep):
        publish(run, "stable", 4)
    assert read_channel(run, "stable").generation == 1


def test_a_step_that_changes_while_it_is_published_is_not(run, monkeypatch):
    real = channel_module.verify

    def verify(run, step, **options):
        manifest = real(run, step, **options)
        shutil.rmtree(run.folder(step))
        return manifest

    monkeypatch.setattr(channel_module, "verify", verify)
    with pytest.raises(NoSuchStep):
        publish(run, "stable", 2)
    assert read_channel(run, "stable") is None


def test_a_version_that_goes_while_it_is_rolled_back_to_is_passed_over(run, monkeypatch):
    for step in (1, 2, 3):
        publish(run, "stable", step)
    real = channel_module.verify

    def verify(run, step, **options):
        manifest = real(run, step, **options)
        if step == 2:
            shutil.rmtree(run.folder(2))
        return manifest

    monkeypatch.setattr(channel_module, "verify", verify)
    assert rollback(run, "stable").step == 1


def test_a_channel_that_keeps_moving_is_left_alone(run, monkeypatch):
    for step in (1, 2, 3):
        publish(run, "stable", step)
    real = channel_module.verify

    def verify(*arguments, **options):
        if options.get("every_byte", True):
            publish_quietly()
        return real(*arguments, **options)

    def publish_quietly():
        with monkeypatch.context() as patch:
            patch.setattr(channel_module, "verify", real)
            publish(run, "stable", 3)

    monkeypatch.setattr(channel_module, "verify", verify)
    with pytest.raises(Busy):
        rollback(run, "stable")
    assert read_channel(run, "stable").step == 3


def test_history_is_bounded_and_so_is_the_way_back(run):
    publish(run, "stable", 1)
    for _ in range(HISTORY):
        publish(run, "stable", 2)
    record = publish(run, "stable", 3)
    assert len(record.previous) == HISTORY
    assert record.previous[0].generation == 2
    assert [entry.generation for entry in record.behind()] == list(range(HISTORY + 1, 1, -1))
    assert rollback(run, "stable").step == 2
    with pytest.raises(NoRollback):
        rollback(run, "stable")
    assert (run.channels / "stable.json").stat().st_size < MAX_RECORD


@pytest.mark.parametrize("damage", ["flip", "empty", "junk", "huge", "edited", "list"])
def test_a_damaged_record_falls_back_to_the_one_before_and_generations_go_on(run, damage):
    publish(run, "stable", 1)
    publish(run, "stable", 2)
    publish(run, "stable", 3)
    path = run.channels / "stable.json"
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data.replace(b'"step": 3', b'"step": 2', 1))
    elif damage == "edited":
        path.write_bytes(orjson.dumps({**orjson.loads(data), "step": 1}))
    elif damage == "huge":
        os.truncate(path, MAX_RECORD + 1)
    else:
        path.write_bytes({"empty": b"", "junk": b"\xff{", "list": b"[1]"}[damage])
    assert path.read_bytes() != data
    record = read_channel(run, "stable")
    assert (record.generation, record.step) == (2, 2)
    # Readers that saw generation 3 see a newer one again.
    assert publish(run, "stable", 1).generation == 4
    assert rollback(run, "stable").step == 2


def test_a_first_record_that_is_damaged_is_an_error_until_the_next(run):
    publish(run, "stable", 1)
    (run.channels / "stable.json").write_bytes(b"")
    with pytest.raises(BadRecord, match="publish anew"):
        read_channel(run, "stable")
    assert publish(run, "stable", 1).generation == 2


def test_a_record_under_anothers_name_is_refused(run):
    publish(run, "stable", 1)
    shutil.copy(run.channels / "stable.json", run.channels / "canary.json")
    with pytest.raises(BadRecord):
        read_channel(run, "canary")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", ".hidden", "a b", "é", "x" * 65, "a\n"]
)
def test_names_that_could_be_paths_are_refused(run, name):
    for act in (read_channel, rollback, lambda run, name: publish(run, name, 1)):
        with pytest.raises(BadRecord, match="cannot name a channel"):
            act(run, name)
    with pytest.raises(BadRecord, match="not a manifest hash"):
        is_quarantined(run, name)


def test_a_damaged_quarantine_still_counts(run):
    hash = run.manifest(1).hash
    quarantine(run, hash, {"reason": "slow"})
    (run.quarantine / f"{hash}.json").write_bytes(b"{")
    assert is_quarantined(run, hash)
    assert "not JSON" in reason(run, hash)["reason"]
    assert reason(run, run.manifest(2).hash) is None
    with pytest.raises(Quarantined):
        publish(run, "stable", 1)


def test_publishers_in_threads_each_get_a_generation_of_their_own(run):
    found, count = [], 8

    def work(step):
        found.extend(publish(Run(run.root), "stable", step).generation for _ in range(count))

    threads = [threading.Thread(target=work, args=(1 + i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1, 3 * count + 1))
    assert read_channel(run, "stable").generation == 3 * count


def test_readers_never_see_a_record_in_the_making(run):
    publish(run, "stable", 1)
    done = threading.Event()

    def work():
        for i in range(30):
            publish(Run(run.root), "stable", 1 + i % 3)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    last = 0
    while not done.is_set():
        record = read_record(run.channels / "stable.json")
        assert record["generation"] >= last
        last = record["generation"]
    thread.join()
