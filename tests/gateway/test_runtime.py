"""The private folder: ours alone, gone at the end, and no heap of those of killed gateways."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from gateway.runtime import RuntimeFolder

KILLED = """
import os, sys
from pathlib import Path
from gateway.runtime import RuntimeFolder
folder = RuntimeFolder(Path(sys.argv[1]))
(folder.path / "r-0.sock").touch()
os.kill(os.getpid(), 9)
"""


def test_it_is_private_and_removed(tmp_path):
    folder = RuntimeFolder(tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "r-0.sock").touch()
    folder.close()
    assert not folder.path.exists()


def test_what_a_killed_gateway_left_is_removed_and_what_runs_is_not(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    foreign = tmp_path / "penstock-notes"
    foreign.mkdir()
    running = RuntimeFolder(tmp_path)
    another = RuntimeFolder(tmp_path)
    assert not left.exists()
    assert running.path.exists() and foreign.exists()
    another.close()
    running.close()


def test_what_is_left_without_a_lock_is_removed_once_it_is_old(tmp_path):
    def folder(name: str, *files: str, age_s: float) -> Path:
        made = tmp_path / name
        made.mkdir()
        for file in files:
            (made / file).touch()
        then = time.time() - age_s
        os.utime(made, (then, then))
        return made

    old = folder("penstock-old", "r-0.sock", "w.port", age_s=120.0)
    new = folder("penstock-new", "r-0.sock", age_s=1.0)
    foreign = folder("penstock-notes", "r-0.sock", "notes.txt", age_s=1e6)
    empty = folder("penstock-empty", age_s=1e6)
    RuntimeFolder(tmp_path).close()
    assert not old.exists()
    assert new.exists() and foreign.exists() and empty.exists()


def test_its_path_leaves_room_for_the_names_of_sockets(tmp_path, monkeypatch):
    deep = tmp_path / "a-long-way-from-the-root"
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(deep))
    monkeypatch.setattr("tempfile.tempdir", os.fspath(deep))
    folder = RuntimeFolder()
    longest = folder.path / f"{'n' * 60}-1023.sock"
    folder.close()
    assert len(os.fspath(longest)) < 107
