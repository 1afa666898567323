"""`python -m trainer ls|verify|publish|rollback|prune`, on one run of three checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backends.checkpoint import Run, quarantine, read_channel
from tests.trainer.tiny import CONFIG
from trainer.__main__ import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "train.toml").write_text(CONFIG.format(run=folder / "run"))
    config = str(folder / "train.toml")
    assert main([config, "steps=10", "checkpoint.every=5"]) == 0
    assert main([config, "steps=15", "checkpoint.every=5"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_ls_shows_versions_and_channels(run, capsys):
    quarantine(Run(run), Run(run).manifest(5).hash, {"reason": "test"})
    assert main(["ls", str(run)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["VERSION", "SAMPLES", "SIZE", "HELD", "OUT", "CHANNEL"]
    assert [row.split()[0] for row in rows] == [Run(run).manifest(s).version for s in (5, 10, 15)]
    assert "in quarantine" in rows[0] and "stable" not in rows[1]
    assert rows[2].endswith("stable (generation 2)")


def test_ls_says_what_is_broken_and_what_is_empty(run, tmp_path, capsys):
    (run / "ckpt" / "step-00000005" / "state" / ".metadata").unlink()
    assert main(["ls", str(run)]) == 0
    assert "BROKEN" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["ls", str(tmp_path / "empty")]) == 0
    assert "nothing is committed yet" in capsys.readouterr().out
    assert main(["ls", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_verify_reads_every_byte(run, capsys):
    assert main(["verify", str(run)]) == 0
    assert capsys.readouterr().out.count("whole") == 3
    file = run / "ckpt" / "step-00000010" / "model" / "model-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["verify", str(run)]) == 1
    said = capsys.readouterr().out
    assert "step 10  BROKEN" in said and said.count("whole") == 2
    assert main(["verify", str(run), "5", "15"]) == 0
    assert main(["verify", str(run), "7"]) == 1


def test_publish_and_rollback_move_the_channel(run, capsys):
    assert main(["publish", str(run), "--step", "5", "--require", "accuracy > 0.1"]) == 0
    assert f"stable is now {Run(run).manifest(5).version}" in capsys.readouterr().out
    assert main(["publish", str(run), "--step", "5"]) == 0
    assert "was already" in capsys.readouterr().out
    assert main(["rollback", str(run), "--channel", "stable"]) == 0
    channel = read_channel(Run(run), "stable")
    assert channel is not None and (channel.step, channel.generation) == (15, 4)
    assert main(["publish", str(run), "--channel", "canary"]) == 0  # the newest
    canary = read_channel(Run(run), "canary")
    assert canary is not None and (canary.step, canary.generation) == (15, 1)
    assert main(["rollback", str(run), "--channel", "canary"]) == 1
    assert "no earlier version" in capsys.readouterr().err


def test_publish_refuses_what_the_gate_or_quarantine_refuses(run, capsys):
    before = read_channel(Run(run), "stable")
    assert main(["publish", str(run), "--step", "5", "--require", "loss < 0"]) == 1
    assert "the gate asks for loss < 0" in capsys.readouterr().err
    quarantine(Run(run), Run(run).manifest(5).hash, {"reason": "test"})
    assert main(["publish", str(run), "--step", "5"]) == 1
    assert "quarantine" in capsys.readouterr().err
    assert main(["publish", str(run), "--step", "6"]) == 1
    assert read_channel(Run(run), "stable") == before
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(run), "--require", "good"])
    assert ended.value.code == 2


def test_prune_deletes_what_nothing_needs(run, capsys):
    assert main(["prune", str(run), "--keep", "1", "--keep-every", "5", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would delete nothing\n"
    assert main(["prune", str(run), "--keep", "1", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would delete step 5\n"
    assert Run(run).steps() == [5, 10, 15]
    assert main(["prune", str(run), "--keep", "1"]) == 0
    assert capsys.readouterr().out == "deleted step 5\n"
    assert Run(run).steps() == [10, 15]  # 10 is where a rollback would go
    with pytest.raises(SystemExit):
        main(["prune", str(run), "--keep", "0"])


def test_push_and_pull_carry_a_run_to_another_machine(run, tmp_path, capsys):
    store = f"file://{tmp_path}/store"
    assert main(["pull", str(tmp_path / "away"), store]) == 1
    assert "has nothing yet" in capsys.readouterr().err
    assert main(["push", str(run), store]) == 0
    version = Run(run).manifest(15).version
    assert f"stable is at {version} (generation 2)" in capsys.readouterr().out
    assert main(["pull", str(tmp_path / "away"), store]) == 0
    assert f"{version} is here" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "away")]) == 0  # the trainer's state too
    assert main(["push", str(run), store, "--channel", "canary"]) == 1
    assert "nothing was published to channel canary" in capsys.readouterr().err
    assert main(["push", str(run), store, "--keep", "1"]) == 0
    assert "deleted nothing" in capsys.readouterr().out  # a rollback would go to the other one
    assert main(["push", str(run), "nosuch://x"]) == 1
    assert "nosuch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["push", str(run), store, "--option", "endpoint"])
