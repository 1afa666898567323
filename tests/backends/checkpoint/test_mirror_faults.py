"""What breaks on the way to a store and from it: at every single operation, whoever serves a copy
has a whole version, and who does it again has done it."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from backends.checkpoint import (
    ChannelMoved,
    CheckpointError,
    CommitAborted,
    Incomplete,
    NoSuchStep,
    Run,
    Unreadable,
    clean,
    publish,
    read_channel,
    verify,
)
from backends.checkpoint import objects as objects_module
from backends.checkpoint.mirror import SERVED, newest_channel, prune_store, pull, push, refresh
from backends.checkpoint.objects import Store
from tests.backends.checkpoint.faults import CountingDisk, FailingDisk
from tests.backends.checkpoint.samples import make
from tests.backends.checkpoint.test_crash import run_crasher

OPERATIONS = ("put", "put_new", "put_file", "get", "read", "names", "delete")


class FailingStore(Store):
    """Operation `at` and all after it fail; a file is put by half first."""

    def __init__(self, url: str, at: int | None = None) -> None:
        super().__init__(url)
        self.at, self.names_of = at, list[str]()


def _failing(name: str):
    def operation(self, key, *arguments):
        self.names_of.append(name)
        if self.at is not None and len(self.names_of) > self.at:
            if name == "put_file" and len(self.names_of) == self.at + 1:
                data = arguments[0].read_bytes()
                Store.put(self, key, data[: len(data) // 2])
            raise Unreadable(f"{self.url}/{key}: gone")
        return getattr(Store, name)(self, key, *arguments)

    return operation


for _name in OPERATIONS:
    setattr(FailingStore, _name, _failing(_name))


@pytest.fixture
def run(root):
    run = Run(root)
    for step in (1, 2):
        make(run, step)
    publish(run, "stable", 1)
    return run


@pytest.fixture
def url(root):
    return f"file://{root.parent}/store"


def served(copy: Run) -> int:
    """The step that a replica of the copy serves, whole."""
    record = read_channel(copy, "stable")
    manifest = copy.manifest(record.step, hash=record.hash)
    for path, file in manifest.files.items():
        if path.startswith(SERVED):
            assert (copy.folder(record.step) / path).stat().st_size == file.bytes
    return record.step


def test_a_push_that_ends_at_any_operation_leaves_a_whole_version(run, root, url):
    push(run, "stable", Store(url))
    store = Path(url.removeprefix("file://"))
    shutil.copytree(store, root.parent / "before")
    publish(run, "stable", 2)
    counted = FailingStore(url)
    push(run, "stable", counted)
    assert len(counted.names_of) > 8
    for at, name in enumerate(counted.names_of):
        where = f"{name}, operation {at}"
        shutil.rmtree(store)
        shutil.copytree(root.parent / "before", store)
        copy = Run(root.parent / f"copy-{at}")
        refresh(Store(url), copy, "stable")
        with pytest.raises(Unreadable):
            push(run, "stable", FailingStore(url, at))
        refresh(Store(url), copy, "stable")
        assert served(copy) == newest_channel(Store(url), "stable").step, where
        push(run, "stable", Store(url))
        refresh(Store(url), copy, "stable")
        assert served(copy) == 2, where


def test_a_record_is_put_with_all_its_bytes_or_not_at_all(run, url, monkeypatch):
    with monkeypatch.context() as broken:

        def link(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        broken.setattr(objects_module.os, "link", link)
        with pytest.raises(Unreadable, match="No space"):
            push(run, "stable", Store(url))
    store = Store(url)
    assert newest_channel(store, "stable") is None
    assert push(run, "stable", store).step == 1
    assert store.names("channels/stable") == ["000000000001.json"]
    assert not store.put_new("channels/stable/000000000001.json", b"another's")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_copys_disk_that_fails_at_any_operation_leaves_the_version_before(run, root, url, code):
    store = Store(url)
    push(run, "stable", store)
    before = root.parent / "before"
    refresh(store, Run(before), "stable")
    publish(run, "stable", 2)
    push(run, "stable", store)
    counted = CountingDisk()
    shutil.copytree(before, root.parent / "counted")
    refresh(store, Run(root.parent / "counted", counted), "stable")
    place = root.parent / "copy"
    for at, name in enumerate(counted.names):
        where = f"{errno.errorcode[code]} at operation {at} ({name})"
        shutil.copytree(before, place)
        with suppress(CommitAborted, CheckpointError, OSError):
            refresh(store, Run(place, FailingDisk(at, code, once=True)), "stable")
        copy = Run(place)
        assert served(copy) in (1, 2), where
        for path in copy.leases.glob("*.json"):
            path.unlink()  # of a writer that this very process, still alive, was made to abandon
        refresh(store, copy, "stable")
        assert served(copy) == 2, where
        shutil.rmtree(place)


def test_a_replica_killed_at_any_operation_of_a_pull_leaves_the_version_before(place):
    folder = place / "pulls"
    folder.mkdir()
    run_crasher(folder, "pulls")
    operations = (folder / "operations").read_text().split()
    assert len(operations) > 20
    store = Store(f"file://{folder}/store")
    for at, name in enumerate(operations):
        copy = Run(folder / f"killed-{at:03d}")
        assert served(copy) in (1, 2), name
        refresh(store, copy, "stable")
        assert served(copy) == 2, name
        clean(copy)
        assert [path.name for path in copy.ckpt.glob(".*")] == [], name


def test_what_is_pruned_while_it_is_pulled_becomes_no_step(run, root, url):
    store = Store(url)
    push(run, "stable", store)
    copy = Run(root.parent / "copy")

    class Pruned(Store):
        """Another publisher moves on, and prunes, as the first file is read."""

        def read(self, key, size):
            for step in (2, 3):
                if not run.has(step):
                    make(run, step)
                publish(run, "stable", step)
                push(run, "stable", store)
            assert 1 in prune_store(store, keep=1)
            return super().read(key, size)

    with pytest.raises((Incomplete, NoSuchStep)):
        pull(Pruned(url), copy, 1)
    assert copy.steps() == []
    assert refresh(store, copy, "stable").step == 3
    assert served(copy) == 3


def test_two_publishers_of_one_run_put_one_record_a_generation(run, root, url):
    """The same run on two machines, one of which has not seen what the other one published."""
    shutil.copytree(root, root.parent / "other")
    other = Run(root.parent / "other")
    publish(run, "stable", 2)
    push(run, "stable", Store(url))
    make(other, 3)
    publish(other, "stable", 3)
    with pytest.raises(ChannelMoved):
        push(other, "stable", Store(url))
    assert newest_channel(Store(url), "stable").step == 2
    assert verify(run, 2)
