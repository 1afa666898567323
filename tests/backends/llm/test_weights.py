"""A language model's weights, read beside what serves: how fast, and until when."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.checkpoint import Cancelled, Run
from backends.checkpoint.reading import Pace
from backends.llm.weights import Reading, read_whole
from tests.backends.llm.test_replica import commit_decoder


def test_small_tensors_keep_to_the_rate_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    commit_decoder(run, 1)
    manifest = run.manifest(1)
    paces, spend = list[Pace](), Pace.spend

    def noted(pace: Pace, count: int) -> None:
        paces.append(pace)
        spend(pace, count)

    monkeypatch.setattr(Pace, "spend", noted)
    # Each of them is less than one chunk, which nobody waits for.
    reading = Reading(run.folder(1), manifest, "fp32", "cpu", 4, 1)
    with pytest.raises(Cancelled):
        read_whole(reading, lambda: len(paces) == 2)
    assert paces[0] is paces[1]
