"""What a resume passes over, and what it must not touch."""

from __future__ import annotations

import pytest

from backends.checkpoint import Corrupt, Run, Unreadable
from tests.e2e.publishing import publish_stamp
from trainer import resume
from trainer.errors import RunUnreadable

MODEL = {"class": "stamp:Stamp", "config": {}}


def failing(error):
    """A `verify` that fails on step 2 and says that any other is whole."""

    def verify(run, step):
        if step == 2:
            raise error
        return run.manifest(step)

    return verify


@pytest.fixture
def run(tmp_path):
    for step in (1, 2):
        publish_stamp(tmp_path, step)
    return Run(tmp_path)


def test_a_damaged_step_is_moved_away_and_the_one_before_it_is_taken(run, monkeypatch):
    monkeypatch.setattr(resume, "verify", failing(Corrupt("model/x", "a", "b")))
    start = resume.choose(run, MODEL)
    assert start.step == 1
    assert run.steps() == [1]
    assert list(run.ckpt.glob(".broken-*"))
    assert "damaged" in start.notes[0] and "stable points at it" in start.notes[0]


def test_a_step_that_cannot_be_read_now_stays_where_it_is(run, monkeypatch):
    monkeypatch.setattr(resume, "verify", failing(Unreadable("Input/output error")))
    with pytest.raises(RunUnreadable, match="step 2 cannot be read now"):
        resume.choose(run, MODEL)
    assert run.steps() == [1, 2]
