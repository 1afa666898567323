"""Machines that join a run under way and are lost: whoever is left goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.checkpoint import Run
from tests.trainer.ranks import BOUND_S, journal
from tests.trainer.tiny import CONFIG
from trainer import launch

# Every change of the ranks starts Python anew.
pytestmark = pytest.mark.timeout(900)

PLAIN = ("model.class=tests.trainer.tiny:Plain", "steps=100000", "checkpoint.every=100")


def test_machines_come_and_go_and_whoever_is_left_goes_on(tmp_path: Path):
    run = tmp_path / "run"
    (tmp_path / "train.toml").write_text(CONFIG.format(run=run))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    trainer = [sys.executable, "-m", "trainer"]
    store = subprocess.Popen([*trainer, "store", "0"], stdout=subprocess.PIPE, text=True)
    assert store.stdout is not None
    port = store.stdout.readline().split("port ")[1].split(";")[0]
    command = [*trainer, "launch", "--machines", "1:2", "--store", f"127.0.0.1:{port}"]
    command += [str(tmp_path / "train.toml"), *PLAIN, "balance.mesh=true"]
    agents: list[subprocess.Popen[bytes]] = []

    def join() -> subprocess.Popen[bytes]:
        with (tmp_path / f"log-{len(agents)}").open("wb") as log:
            agents.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        return agents[-1]

    def trains(ranks: int) -> Callable[[], bool]:
        """A commit was made since the run last began, with so many ranks."""

        def there() -> bool:
            starts, commits = journal(run, "start"), journal(run, "commit")
            if not starts or starts[-1]["ranks"] != ranks or not commits:
                return False
            return commits[-1]["step"] > starts[-1]["step"] + 100

        return there

    try:
        first = join()
        wait(trains(1), first, tmp_path)
        second = join()
        wait(trains(2), second, tmp_path)
        first.kill()
        wait(trains(1), second, tmp_path)
        second.send_signal(signal.SIGTERM)
        assert second.wait(BOUND_S) == 143
        assert "SignalException" not in (tmp_path / "log-1").read_text()
        store.send_signal(signal.SIGTERM)
        assert store.wait(BOUND_S) == 0
    finally:
        for process in (*agents, store):
            process.kill()
            process.wait()
        store.stdout.close()
    starts = journal(run, "start")
    assert [line["ranks"] for line in starts][-2:] == [2, 1]
    assert starts[0]["ranks"] == 1
    last = Run(run).latest()
    assert last is not None and last.position == last.step * 24
    commits = [line["step"] for line in journal(run, "commit")]
    assert starts[-1]["step"] in commits and starts[-2]["step"] < starts[-1]["step"] < last.step


def wait(condition: Callable[[], bool], agent: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + 2 * BOUND_S
    while not condition():
        said = "\n".join(log.read_text() for log in sorted(folder.glob("log-*")))
        assert agent.poll() is None and time.monotonic() < until, said
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "expected a CONFIG"),
        (["--machines", "1:2", "x.toml"], "--machines needs --store"),
        (["--machines", "3:2", "x.toml"], "expected a number, or MIN:MAX, got '3:2'"),
        (["--ranks", "0", "x.toml"], "expected a number from 1"),
        (["x.toml", "steps=3", "--ranks", "2"], "--ranks stands behind CONFIG"),
        (["--store", "host", "x.toml"], "expected HOST:PORT, got 'host'"),
    ],
)
def test_what_cannot_be_launched_is_refused(argv, said, capsys):
    with pytest.raises(SystemExit):
        launch.main(["launch", *argv])
    assert said in capsys.readouterr().err


def test_a_wrong_configuration_is_said_before_ranks_start(tmp_path, capsys):
    assert launch.main(["launch", str(tmp_path / "none.toml"), "steps=3"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_failure_is_a_line_and_a_status(tmp_path: Path):
    """The rank's own, and not torchrun's stack behind it."""
    (tmp_path / "train.toml").write_text(CONFIG.format(run=tmp_path / "run"))
    command = [sys.executable, "-m", "trainer", "launch", "--restarts", "0"]
    command += [str(tmp_path / "train.toml"), "model.class=tests.trainer.tiny:Nothing"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "has no class 'Nothing'" in done.stderr
    assert "rank 0 ended with status 2, and no restart is left" in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_share_the_cores():
    cores = len(os.sched_getaffinity(0))
    assert launch.environment({}, "1")["OMP_NUM_THREADS"] == str(cores)
    assert launch.environment({}, str(2 * cores))["OMP_NUM_THREADS"] == "1"
    assert launch.environment({"OMP_NUM_THREADS": "3"}, "1")["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in launch.environment({}, "gpu")


def test_one_machine_needs_no_store():
    command = launch.torchrun(launch.parse(["--ranks", "2", "x.toml", "steps=3"]))
    assert "--standalone" in command and command[-4:] == ["-m", "trainer", "x.toml", "steps=3"]


def test_a_port_that_is_taken_is_said(capsys):
    with socket.create_server(("0.0.0.0", 0)) as taken:
        assert launch.main(["store", str(taken.getsockname()[1])]) == 1
    assert "error: port" in capsys.readouterr().err
