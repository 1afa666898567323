"""A run on an object store: what is pushed is what is pulled; what is half there is not there."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from backends.checkpoint import (
    BadRecord,
    ChannelMoved,
    Corrupt,
    Incomplete,
    NoSuchStep,
    ReaderLease,
    Run,
    StepExists,
    Unreadable,
    publish,
    read_channel,
    rollback,
    verify,
)
from backends.checkpoint.mirror import (
    newest_channel,
    prune_store,
    pull,
    push,
    push_step,
    refresh,
    tidy,
)
from backends.checkpoint.objects import Store, is_url
from tests.backends.checkpoint.samples import loads, make

BUCKET = "penstock"


@pytest.fixture(scope="module")
def s3():
    """A local S3 server; the options with which a client finds it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "k", "secret": "s"}
    import s3fs

    s3fs.S3FileSystem(**options).mkdir(BUCKET)
    yield options
    server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def store(request, root):
    name = uuid.uuid4().hex
    if request.param == "file":
        return Store(f"file://{root.parent}/store")
    if request.param == "memory":
        return Store(f"memory://{name}")
    return Store(f"s3://{BUCKET}/{name}", **request.getfixturevalue("s3"))


@pytest.fixture
def local(root):
    """A store without a server, for what is the same in all of them."""
    return Store(f"file://{root.parent}/store")


@pytest.fixture
def run(root):
    run = Run(root)
    for step in (1, 2, 3):
        make(run, step)
    publish(run, "stable", 1)
    return run


@pytest.fixture
def copy(root):
    return Run(root.parent / "copy")


def hold(store: Store, key: str) -> Path:
    return Path(store.url.removeprefix("file://")) / key


def test_what_is_a_url():
    assert is_url("s3://bucket/run") and is_url("file:///tmp/x")
    assert not is_url("runs/digits") and not is_url("/tmp/x")


def test_a_store_that_nobody_knows_is_refused_by_name():
    with pytest.raises(BadRecord, match="nosuch"):
        Store("nosuch://x")


def test_a_channel_travels_with_what_it_points_at(run, copy, store):
    assert refresh(store, copy, "stable") is None
    pushed = push(run, "stable", store)
    assert refresh(store, copy, "stable") == pushed == read_channel(copy, "stable")
    assert loads(copy, 1)
    assert copy.manifest(1).hash == run.manifest(1).hash
    assert refresh(store, copy, "stable") is None  # nothing new
    publish(run, "stable", 2)
    assert push(run, "stable", store) == push(run, "stable", store)  # safe to repeat
    assert refresh(store, copy, "stable").step == 2
    assert loads(copy, 2)
    # Both generations are there: a replica can go back.
    assert [entry.step for entry in read_channel(copy, "stable").behind()] == [1]
    assert copy.steps() == [1, 2]


def test_a_copy_to_serve_leaves_the_trainers_state_out(run, copy, local):
    push(run, "stable", local)
    pull(local, copy, 1)
    assert not (copy.folder(1) / "state" / ".metadata").exists()
    assert loads(copy, 1)
    pull(local, copy, 1, served_only=False)
    verify(copy, 1)  # every byte


def test_going_back_travels_too(run, copy, local):
    publish(run, "stable", 2)
    push(run, "stable", local)
    refresh(local, copy, "stable")
    assert copy.steps() == [1, 2]  # the one before came along, for a replica that refuses this one
    rollback(run, "stable")
    push(run, "stable", local)
    assert refresh(local, copy, "stable").step == 1


def test_copies_that_nobody_needs_go_and_those_in_use_stay(run, copy, local):
    push(run, "stable", local)
    refresh(local, copy, "stable")
    with ReaderLease(copy, 1, "replica"):
        for step in (2, 3):
            publish(run, "stable", step)
            push(run, "stable", local)
            refresh(local, copy, "stable")
        assert copy.steps() == [1, 2, 3]
    assert tidy(copy) == [1]
    assert copy.steps() == [2, 3]


def test_without_its_manifest_a_step_is_not_there(run, copy, local):
    push(run, "stable", local)
    hold(local, "ckpt/step-00000001/MANIFEST.json").unlink()
    with pytest.raises(NoSuchStep):
        pull(local, copy, 1)
    with pytest.raises(NoSuchStep):
        refresh(local, copy, "stable")
    assert copy.steps() == []
    assert read_channel(copy, "stable") is None
    push(run, "stable", local)  # finishes what was begun
    assert refresh(local, copy, "stable").step == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_bytes_that_are_not_those_committed_become_no_step(run, copy, local, damage):
    push(run, "stable", local)
    shard = hold(local, "ckpt/step-00000001/model/model-00002-of-00002.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    match damage:
        case "flip":
            shard.write_bytes(data)
        case "cut":
            shard.write_bytes(data[:-1])
        case "gone":
            shard.unlink()
    with pytest.raises(Corrupt if damage == "flip" else Incomplete, match="model-00002"):
        refresh(local, copy, "stable")
    assert copy.steps() == []
    assert read_channel(copy, "stable") is None
    assert [path.name for path in copy.ckpt.iterdir()] == []


def test_a_damaged_channel_is_refused(run, copy, local):
    push(run, "stable", local)
    record = hold(local, "channels/stable/000000000001.json")
    record.write_bytes(record.read_bytes().replace(b'"step": 1', b'"step": 2'))
    with pytest.raises(BadRecord):
        refresh(local, copy, "stable")


def test_two_publishers_do_not_overwrite_one_another(run, root, store):
    other = Run(root.parent / "other")
    make(other, 7)
    publish(other, "stable", 7)
    push(run, "stable", store)
    with pytest.raises(ChannelMoved):
        push(other, "stable", store)
    assert newest_channel(store, "stable").step == 1
    publish(run, "stable", 2)
    push(run, "stable", store)
    with pytest.raises(ChannelMoved, match="generation 2"):
        push(other, "stable", store)


def test_another_runs_step_of_the_same_number_is_refused(run, root, copy, local):
    other = Run(root.parent / "other")
    make(other, 1, attempt="9")
    push_step(run, 1, local)
    with pytest.raises(StepExists):
        push_step(other, 1, local)
    pull(local, copy, 1)
    elsewhere = Store(f"file://{root.parent}/elsewhere")
    push_step(other, 1, elsewhere)
    with pytest.raises(StepExists, match="another run"):
        pull(elsewhere, copy, 1)
    assert loads(copy, 1)


def test_pruning_a_store_keeps_what_channels_need(run, store):
    for step in (1, 2, 3):
        publish(run, "stable", step)
        push(run, "stable", store)
    publish(run, "canary", 3)
    push(run, "canary", store)
    make(run, 4)
    push_step(run, 4, store)
    assert prune_store(store, keep=1) == [1]
    names = [name for name in store.names("ckpt") if store.names(f"ckpt/{name}")]
    assert names == ["step-00000002", "step-00000003", "step-00000004"]
    assert prune_store(store, keep=1) == []


def test_a_store_that_cannot_be_reached_says_so_and_changes_nothing(run, copy):
    away = Store(
        f"s3://{BUCKET}/x",
        endpoint_url="http://127.0.0.1:9",
        key="k",
        secret="s",
        config_kwargs={"retries": {"max_attempts": 0}, "connect_timeout": 1},
    )
    with pytest.raises(Unreadable, match="s3://penstock/x"):
        refresh(away, copy, "stable")
    with pytest.raises(Unreadable):
        push(run, "stable", away)


def test_two_who_pull_the_same_step_at_once_both_have_it(run, copy, local):
    push(run, "stable", local)
    outcomes: list[object] = []

    def one() -> None:
        try:
            outcomes.append(pull(local, copy, 1).step)
        except StepExists as error:  # the other one is between its look and its rename
            outcomes.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4 and 1 in outcomes
    assert loads(copy, 1)
    assert copy.steps() == [1]
