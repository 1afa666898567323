"""What people see of a run."""

from __future__ import annotations

import os

from backends.checkpoint import ReaderLease, Run, overview, publish, quarantine
from tests.backends.checkpoint.samples import make


def test_rows_say_what_is_there_and_who_needs_it(root):
    run = Run(root)
    manifests = {step: make(run, step) for step in (1, 2, 3, 4)}
    publish(run, "stable", 1)
    publish(run, "stable", 2)
    quarantine(run, manifests[1].hash, {"reason": "slow"})
    os.truncate(run.folder(3) / "state/.metadata", 0)
    with ReaderLease(run, 2, "digits-0"):
        rows = {row.step: row for row in overview(run)}
    assert list(rows) == [1, 2, 3, 4]
    assert rows[1].uses == ("rollback of stable",)
    assert rows[1].quarantined
    assert rows[2].uses == ("channel stable", "reader digits-0")
    assert rows[2].version == manifests[2].version
    assert rows[2].bytes == manifests[2].total
    assert (rows[2].position, rows[2].evaluation) == (20, {"accuracy": 0.5})
    assert not rows[2].quarantined
    assert rows[2].problem is None
    assert rows[3].problem == "incomplete: state/.metadata: expected 27 bytes, found 0 bytes"
    assert rows[4].uses == ("LATEST",)


def test_damaged_records_are_shown_not_raised(root):
    run = Run(root)
    make(run, 1)
    publish(run, "stable", 1)
    (run.channels / "stable.json").write_bytes(b"{")
    (run.ckpt / "LATEST").write_bytes(b"{")
    (run.folder(1) / "MANIFEST.json").write_bytes(b"{")
    (row,) = overview(run)
    assert row.uses == ("LATEST? (bad_record)", "channel stable? (bad_record)")
    assert (row.version, row.bytes) == (None, 0)
    assert row.problem.startswith("bad_record: MANIFEST.json")


def test_a_run_that_is_not_there_has_no_rows(root):
    assert overview(Run(root)) == []
    assert not root.exists()
