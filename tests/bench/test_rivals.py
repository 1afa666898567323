from __future__ import annotations

import pytest

from bench import rivals
from bench.contenders import start_all
from bench.rivals import RIVALS, Rival, chosen
from bench.serving import ServerFailed


@pytest.mark.parametrize("rival", RIVALS.values(), ids=list(RIVALS))
def test_every_requirement_is_pinned(rival):
    lines = [text for text in rival.requirements.read_text().splitlines() if text[:1] != "#"]
    assert lines
    assert all("==" in text for text in lines)
    assert rival.version()


def test_a_quick_run_leaves_the_slow_ones_out_unless_they_are_named():
    assert chosen(None, quick=False) == tuple(RIVALS)
    assert chosen(None, quick=True) == ("mosec", "triton")
    assert chosen(("ray",), quick=True) == ("ray",)
    assert chosen((), quick=False) == ()


def test_a_rival_that_is_not_there_is_unavailable_with_the_command_that_helps(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(rivals, "CACHE", tmp_path)
    rival = Rival("mosec", "mosec", lambda folder, python: pytest.fail("was started"))
    with pytest.raises(ServerFailed, match="bench rivals install mosec"):
        rival.launch(tmp_path)
    # Installed once, of other pins.
    (tmp_path / "mosec").mkdir()
    (tmp_path / "mosec" / "installed.txt").write_text("mosec==0.1\n")
    assert "another version" in rival.missing
    (tmp_path / "mosec" / "installed.txt").write_text(rival.requirements.read_text())
    assert rival.missing is None


def test_one_that_cannot_start_does_not_stop_the_others(tmp_path):
    from contextlib import ExitStack

    def fails():
        raise ServerFailed("no disk", "several\nlines")

    with ExitStack() as stack:
        running, failures = start_all(stack, {"bad": fails})
    assert running == {}
    assert str(failures["bad"]) == "no disk: lines"
