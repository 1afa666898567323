from __future__ import annotations

import pytest

from bench.contenders import start_all
from bench.rivals import ALL, RELAYS, RIVALS, NoSuchRival, Rival, chosen, debian, rival
from bench.rivals.bundled import BundledRival
from bench.rivals.debian import DebianRival
from bench.rivals.relays import haproxy
from bench.serving import ServerFailed

UNPINNED = (DebianRival, BundledRival)
PINNED = [found for found in ALL.values() if not isinstance(found, UNPINNED)]


@pytest.mark.parametrize("rival", PINNED, ids=[found.name for found in PINNED])
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
    assert "litellm" not in chosen(None, quick=True, among=RELAYS)
    assert chosen(("haproxy",), quick=True, among=RELAYS) == ("haproxy",)
    with pytest.raises(NoSuchRival, match=r"'mosec'; here there are haproxy"):
        chosen(("mosec",), quick=True, among=RELAYS)


def test_a_rival_that_is_not_there_is_unavailable_with_the_command_that_helps(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(rival, "CACHE", tmp_path)
    mosec = Rival("mosec", "mosec", lambda folder, rival: pytest.fail("was started"))
    with pytest.raises(ServerFailed, match="bench rivals install mosec"):
        mosec.launch(tmp_path)
    # Installed once, of other pins.
    (tmp_path / "mosec").mkdir()
    (tmp_path / "mosec" / "installed.txt").write_text("mosec==0.1\n")
    assert "another version" in mosec.missing
    (tmp_path / "mosec" / "installed.txt").write_text(mosec.requirements.read_text())
    assert mosec.missing is None


def test_a_library_of_ours_is_there_with_our_version_or_says_how_to_get_it():
    found = BundledRival("torch", "torch", lambda *_: pytest.fail("was started"))
    assert found.missing is None and found.version()[0].isdigit()
    found.install()
    absent = BundledRival("absent", "penstock-absent", lambda *_: pytest.fail("was started"))
    assert absent.missing and "pip install -c constraints.txt penstock-absent" in absent.missing
    with pytest.raises(rival.InstallFailed, match="not installed"):
        absent.install()


def test_one_that_cannot_start_does_not_stop_the_others(tmp_path):
    from contextlib import ExitStack

    def fails():
        raise ServerFailed("no disk", "several\nlines")

    with ExitStack() as stack:
        running, failures = start_all(stack, {"bad": fails})
    assert running == {}
    assert str(failures["bad"]) == "no disk: lines"


def test_what_debian_packages_is_found_on_the_path_or_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(rival, "CACHE", tmp_path)
    monkeypatch.setattr(debian.shutil, "which", lambda name: None)
    found = DebianRival("haproxy", "haproxy", haproxy)
    assert "bench rivals install haproxy" in found.missing
    assert found.version() == "Debian's"
    with pytest.raises(rival.InstallFailed, match="PATH"):
        found.install()
    program = tmp_path / "haproxy" / "root" / "usr" / "sbin" / "haproxy"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho HAProxy version 2.6.12-1+deb12u4 2026/10/17\n")
    program.chmod(0o755)
    assert found.missing is None
    assert found.version() == "2.6.12-1+deb12u4"


def test_a_configuration_has_every_upstream(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda name: "/bin/true")
    with haproxy(tmp_path, DebianRival("haproxy", "haproxy", haproxy), [71, 72], None).server:
        text = (tmp_path / "haproxy.cfg").read_text()
    assert "server s0 127.0.0.1:71 check" in text and "server s1 127.0.0.1:72 check" in text
    assert "@PORT@" not in text and "@SERVERS@" not in text
