"""The lock, durable folders, and small records."""

from __future__ import annotations

import os
import threading

import pytest

from backends.checkpoint import BadRecord, Busy, Disk, Unreadable
from backends.checkpoint.disk import locked, open_regular
from backends.checkpoint.records import read_bounded, read_record, seal
from tests.backends.checkpoint.faults import CountingDisk


def test_the_lock_excludes_and_says_so(tmp_path):
    path = tmp_path / "lock"
    with locked(path), pytest.raises(Busy, match="try again") as caught, locked(path, timeout_s=0):
        pass
    assert caught.value.retryable
    with locked(path, timeout_s=0):
        pass


def test_the_lock_is_waited_for(tmp_path):
    path, order, waiting = tmp_path / "lock", [], threading.Event()

    def wait():
        waiting.set()
        with locked(path):
            order.append("second")

    thread = threading.Thread(target=wait)
    with locked(path):
        thread.start()
        assert waiting.wait(30)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_lock_is_free_though_a_forked_child_still_has_it_open(tmp_path):
    path = tmp_path / "lock"
    with locked(path):
        (fd,) = (int(name) for name in os.listdir("/proc/self/fd") if _target(name) == str(path))
        copy = os.dup(fd)  # what a child that was forked here would keep
    with locked(path, timeout_s=0):
        pass
    os.close(copy)


def _target(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:
        return ""


def test_new_folders_are_made_durable_from_the_top(tmp_path):
    disk = CountingDisk()
    disk.make_folders(tmp_path / "a/b")
    disk.make_folders(tmp_path / "a/b")
    assert disk.names == ["make_folder", "fsync", "make_folder", "fsync"]
    assert (tmp_path / "a/b").is_dir()


def test_a_folder_that_another_process_makes_meanwhile_is_fine(tmp_path):
    class Raced(Disk):
        def make_folder(self, path):
            os.mkdir(path)
            super().make_folder(path)

    Raced().make_folders(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()


def test_removing_a_tree_that_goes_meanwhile_is_fine(tmp_path):
    class Raced(Disk):
        def unlink(self, path):
            os.unlink(path)
            super().unlink(path)

        def remove_folder(self, path):
            os.rmdir(path)
            super().remove_folder(path)

    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").touch()
    Raced().remove_tree(tmp_path / "a")
    Raced().remove_tree(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_new_file_never_replaces_one(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        Disk().write_new(tmp_path / "x", b"new")
    Disk().write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_only_regular_files_in_real_folders_are_opened(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "d/link").symlink_to("x")
    os.mkfifo(tmp_path / "d/pipe")
    for path in ("d", "link/x", "d/link", "d/pipe", "nothing", "d/x/y"):
        with pytest.raises(FileNotFoundError):
            open_regular(tmp_path, path)
    os.close(open_regular(tmp_path, "d/x"))


def test_records_are_sealed_and_bounded(tmp_path):
    path = tmp_path / "x.json"
    assert read_record(path) is None
    path.write_bytes(seal({"b": 1, "a": [1.5, None, "é"]}))
    assert read_record(path) == {"b": 1, "a": [1.5, None, "é"]}
    path.write_bytes(path.read_bytes().replace(b"1.5", b"2.5"))
    with pytest.raises(BadRecord, match="seal"):
        read_record(path)
    with pytest.raises(BadRecord, match="larger than 3 bytes"):
        read_bounded(path, 3)
    with pytest.raises(BadRecord, match="JSON"):
        seal({"a": object()})
    with pytest.raises(Unreadable):
        read_bounded(tmp_path / ("x" * 300), 3)
