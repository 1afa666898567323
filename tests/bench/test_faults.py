"""Faults that `checkpoint` injects: each happens, and a version that is lost is told."""

from __future__ import annotations

import shutil

from backends.checkpoint import Run
from bench import faults


def test_no_fault_loses_the_last_good_version(tmp_path):
    found = faults.inject(tmp_path, every=7)
    assert found.lost == []
    assert found.total > 15
    assert found.kinds.keys() == {"full disk", "kill -9", "bit flip", "truncation"}


def test_a_version_that_is_lost_is_told(tmp_path, monkeypatch):
    def destroy(root):
        for step in Run(root).steps():
            shutil.rmtree(Run(root).folder(step) / "model")

    monkeypatch.setattr(faults, "_commits", lambda operations: [])
    monkeypatch.setattr(faults, "_damages", lambda whole: [("bit flip", 7, destroy)])
    found = faults.inject(tmp_path)
    assert (found.total, found.lost) == (1, ["bit flip 7"])
