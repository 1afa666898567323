"""The process tree: what is started, what is replaced, what is left when it ends (nothing)."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from gateway.listening import ListenError
from tests.gateway.supervised import MODEL, PATIENCE_S, SERVER, supervised, until

TREE = """
import asyncio, sys
from pathlib import Path
from gateway.cli_serve import log_to_stderr, open_admin, render
from gateway.settings import Settings
from gateway.supervisor import Supervisor
from tests.gateway.supervised import FAKE_REPLICA, FAKE_WORKER
async def main():
    return await Supervisor(
        Settings.read(Path(sys.argv[1])), open_admin, version="0", render=render,
        worker_command=(*FAKE_WORKER, *sys.argv[2:]), replica_command=FAKE_REPLICA).run()
log_to_stderr("info")
sys.exit(asyncio.run(main()))
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_workers_share_the_port_and_replicas_are_spawned(tmp_path, caplog):
    caplog.set_level("INFO")
    async with supervised(tmp_path, server="workers = 2\n") as running:
        pids = {worker.child.pid for worker in running.supervisor.workers}
        seen = set()
        while seen != pids:
            _, body = await running.get(running.supervisor.listen)
            seen.add(int(body))
        assert set(running.supervisor.replicas) == {"r-0", "r-1"}
        runtime = running.supervisor.runtime
        assert runtime.stat().st_mode & 0o777 == 0o700
        await until(lambda: (runtime / "r-1.sock").exists())
    await running.task
    assert not any(map(alive, pids)) and not runtime.exists()
    assert f"listening on {running.supervisor.listen}" in caplog.text
    assert f" of {tmp_path}/r.toml" in caplog.text


async def test_a_dead_worker_is_replaced_and_its_queue_is_served(tmp_path):
    async with supervised(tmp_path, server="workers = 1\n") as running:
        (worker,) = running.supervisor.workers
        first = worker.child.pid
        os.kill(first, signal.SIGSTOP)
        # It waits in the queue of a worker that will never accept it.
        waiting = asyncio.create_task(running.get(running.supervisor.listen))
        await asyncio.sleep(0.05)
        os.kill(first, signal.SIGKILL)
        status, body = await waiting
        assert status == 200 and int(body) == worker.child.pid != first
        assert worker.child.restarts == 1
        kinds = [event["kind"] for event in running.supervisor.events.since()]
        assert "worker_died" in kinds


async def test_a_worker_that_comes_later_learns_what_operators_changed(tmp_path):
    async with supervised(tmp_path) as running:
        operations = running.supervisor.operations
        await operations.drain("r-0")
        await operations.drain("r-1")
        await operations.undrain("r-1")
        await operations.weight("r-1", 0.5)
        (worker,) = running.supervisor.workers
        os.kill(worker.child.pid, signal.SIGKILL)
        await until(lambda: worker.child.restarts == 1 and worker.ready)
        told = (await worker.call("status"))["told"]
        assert told == [
            ["drain", {"replica": "r-0"}],
            ["weight", {"replica": "r-1", "weight": 0.5}],
        ]


async def test_a_killed_replica_comes_back_and_is_told_of(tmp_path):
    async with supervised(tmp_path) as running:
        replica = running.supervisor.replicas["r-0"]
        first = replica.child.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: replica.child.pid not in (0, first))
        events = [event for event in running.supervisor.events.since() if event["name"] == "r-0"]
        assert events[-1]["kind"] == "replica_died"
        assert events[-1]["text"] == "was killed by SIGKILL; started again at once"


async def test_a_replica_that_cannot_start_says_why_in_the_status(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "r.toml").write_text("die its model is not there\n")
    async with supervised(tmp_path, ready=False) as running:
        replicas = running.supervisor.replicas
        await until(lambda: replicas.get("r-0") and replicas["r-0"].child.restarts > 1)
        status = await running.status()
        process = status["models"][0]["replicas"][0]["process"]
        assert process["how"] == "exited with status 1" and process["restarts"] > 1
        assert process["said"] == "its model is not there"
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    first = next(message for message in told if message.startswith("r-0"))
    assert first.startswith("r-0 exited with status 1 (its model is not there); it is started")


async def test_the_status_is_that_of_the_whole_gateway(tmp_path):
    async with supervised(tmp_path, server="workers = 2\n") as running:
        status = await running.status()
        assert status["version"] == "1.2.3" and status["state"] == "serving"
        assert status["listen"] == running.supervisor.listen and status["pid"] == os.getpid()
        assert [worker["name"] for worker in status["workers"]] == ["worker-0", "worker-1"]
        assert all(worker["state"] == "ready" and worker["pid"] for worker in status["workers"])
        assert all(worker["rss_mb"] is None or worker["rss_mb"] > 1 for worker in status["workers"])
        assert status["models"][0]["counters"]["accepted"] == 6
        _, text = await running.get(f"{running.supervisor.listen}/whole")
        assert 'penstock_requests_total{model="m"} 4.0' in text
        assert 'penstock_replica_ready{model="m",replica="r-1"} 1.0' in text


async def test_counters_of_a_dead_worker_stay_in_the_metrics(tmp_path):
    async with supervised(tmp_path) as running:
        operations, (worker,) = running.supervisor.operations, running.supervisor.workers
        assert 'penstock_requests_total{model="m"} 2.0' in await operations.metrics()
        os.kill(worker.child.pid, signal.SIGKILL)
        await until(lambda: worker.child.restarts == 1 and worker.ready)
        assert 'penstock_requests_total{model="m"} 4.0' in await operations.metrics()


async def test_a_worker_that_does_not_answer_hides_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.worker_process.CALL_S", 0.1)
    async with supervised(tmp_path, server="workers = 2\n") as running:
        stuck = running.supervisor.workers[0]
        os.kill(stuck.child.pid, signal.SIGSTOP)
        status = await running.status()
        assert status["models"][0]["counters"]["accepted"] == 3
        # Much later it is still stuck: then it is replaced.
        monkeypatch.setattr("gateway.worker_process.HUNG_S", 0.0)
        await until(lambda: running.status())
        await until(lambda: stuck.child.restarts == 1 and stuck.ready)


# ------------------------------------------------------------------------------------- its end


async def test_a_worker_that_dies_at_once_ends_the_gateway_with_its_last_words(tmp_path, caplog):
    async with supervised(tmp_path, worker_flags=["--die", "no uvloop"], ready=False) as running:
        assert await running.task == 1
    assert "exited with status 1, 3 times before it could serve" in caplog.text
    assert "\n  no uvloop" in caplog.text


async def test_a_worker_that_refuses_the_configuration_ends_the_gateway(tmp_path, caplog):
    async with supervised(tmp_path, worker_flags=["--refuse"], ready=False) as running:
        assert await running.task == 1
    assert "worker-0 cannot serve: no such luck" in caplog.text


async def test_workers_end_before_replicas(tmp_path):
    async with supervised(tmp_path) as running:
        (worker,) = running.supervisor.workers
        order = []
        for name, process in [("worker", worker), *running.supervisor.replicas.items()]:
            child_task = running.supervisor._children[process.child]
            child_task.add_done_callback(lambda _, name=name: order.append(name))
    assert await running.task == 0
    assert order[0] == "worker" and sorted(order[1:]) == ["r-0", "r-1"]


async def test_a_second_signal_ends_what_does_not_want_to_end(tmp_path):
    async with supervised(
        tmp_path, server="drain_s = 60\n", worker_flags=["--stubborn"]
    ) as running:
        pid = running.supervisor.workers[0].child.pid
        running.supervisor.stop(signal.SIGTERM)
        await until(lambda: running.supervisor.state == "stopping")
        assert alive(pid)
        running.supervisor.stop(signal.SIGINT)
        assert await running.task == 128 + signal.SIGINT
        assert not alive(pid)


async def test_a_stop_is_bounded_by_the_grace(tmp_path, caplog):
    server = "drain_s = 0.1\n"
    async with supervised(tmp_path, server=server, worker_flags=["--stubborn"]) as running:
        pid = running.supervisor.workers[0].child.pid
    assert await running.task == 0
    assert not alive(pid) and "worker-0 could not be stopped in peace" in caplog.text


async def test_a_port_in_use_starts_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        head = SERVER.replace('admin = "127.0.0.1:0"', f'admin = "127.0.0.1:{port}"')
        with pytest.raises(ListenError, match=f"127.0.0.1:{port} is in use.*--set server.admin"):
            async with supervised(tmp_path, head=head, ready=False):
                pass


class Tree:
    """The same in a process of its own, to send it signals."""

    def __init__(self, folder, *flags):
        (folder / "serve.toml").write_text(f"{SERVER}{MODEL}")
        (folder / "r.toml").write_text("ready\n")
        command = [sys.executable, "-c", TREE, str(folder / "serve.toml"), *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.said = ""

    def wait_for(self, pattern):
        for line in self.process.stderr:
            self.said += line
            if found := re.search(pattern, line):
                return found[1]
        raise AssertionError(f"it ended:\n{self.said}")

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def tree(tmp_path):
    tree = Tree(tmp_path)
    yield tree
    tree.close()


def test_sigterm_ends_it_with_status_0_and_leaves_nothing(tree):
    url = tree.wait_for(r"listening on (\S+),")
    pid = int(tree.wait_for(r"worker-0 is ready as process (\d+)"))
    assert urllib.request.urlopen(url, timeout=PATIENCE_S).read() == str(pid).encode()
    tree.process.send_signal(signal.SIGTERM)
    assert tree.process.wait(PATIENCE_S) == 0
    assert not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no parent-death signal")
def test_sigkill_of_the_supervisor_takes_its_children_along(tree):
    worker = int(tree.wait_for(r"worker-0 is ready as process (\d+)"))
    replica = int(tree.wait_for(r"fake replica (\d+)"))
    watched = [os.pidfd_open(pid) for pid in (worker, replica)]
    tree.process.kill()
    tree.process.wait(PATIENCE_S)
    for ending in watched:
        assert select.select([ending], [], [], PATIENCE_S)[0]
        os.close(ending)
