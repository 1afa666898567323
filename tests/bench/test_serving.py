from __future__ import annotations

import os
import time

import pytest

from bench.serving import Server, ServerFailed, _parents, owned, python

TREE = """
import os, subprocess, sys, time
# A child that leaves: its parent ends at once, and it has a session of its own.
code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; "
code += "time.sleep(60)'], start_new_session=True)"
subprocess.run([sys.executable, "-c", code])
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
end = time.process_time() + 0.2
while time.process_time() < end: pass
print("listening on 127.0.0.1:1", flush=True)
time.sleep(60)
"""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "server.log"


def test_the_whole_tree_is_metered_and_stopped(log):
    with Server("tree", python("-c", TREE), log=log) as server:
        assert server.wait_said(r"listening on (\S+)")[1] == "127.0.0.1:1"
        pids = server.pids()
        assert len(pids) == 3
        assert pids[0] == server.pid
        assert server.cpu_seconds() >= 0.2
        assert server.rss_bytes() > 3 * 2**20
    assert not owned(server.pid, server._mark)
    assert all(gone(pid) for pid in pids)
    server.stop()  # again is nothing


def gone(pid):
    """Its parent may yet have to collect it."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if not _parents().get(pid):
            return True  # a zombie
        time.sleep(0.01)
    return False


def test_a_server_that_ends_says_why(log):
    ending = python("-c", "raise SystemExit('no such model')")
    with (
        Server("bad", ending, log=log) as server,
        pytest.raises(ServerFailed, match="exit status 1: no such model"),
    ):
        server.wait_ready("http://127.0.0.1:1/")


def test_a_server_that_does_not_listen_is_given_up(log):
    with (
        Server("late", python("-c", "import time; time.sleep(60)"), log=log) as server,
        pytest.raises(ServerFailed, match="no readiness within 0 s"),
    ):
        server.wait_ready("http://127.0.0.1:1/", 0.1)
