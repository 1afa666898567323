"""Children that are kept running: real processes, short ones."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import select
import signal
import subprocess
import sys

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gateway.process import MAX_LINE, Backoff, Child, Launch

FOREVER = "import time; print('up', flush=True); time.sleep(60)"


class Watch:
    """Notes what a child tells; `up` is set whenever a process runs."""

    def __init__(self):
        self.up = asyncio.Event()
        self.deaths = []
        self.on_death = asyncio.Event()

    async def running(self, child):
        self.up.set()
        await asyncio.Event().wait()

    def died(self, child, how, wait_s):
        self.deaths.append((how, wait_s))
        self.up.clear()
        self.on_death.set()


def child(code, watch, **backoff):
    launch = Launch([sys.executable, "-c", code])
    options = {"base": 0.001, "cap": 0.002, **backoff}
    return Child("kid", lambda: launch, watch, Backoff(random.Random(1), **options))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_that_dies_is_started_again_at_once():
    watch = Watch()
    kid = child(FOREVER, watch, base=60.0, cap=60.0)
    running = asyncio.create_task(kid.run())
    await watch.up.wait()
    first = kid.pid
    os.kill(first, signal.SIGKILL)
    await watch.on_death.wait()
    await watch.up.wait()
    assert watch.deaths == [("was killed by SIGKILL", 0.0)]
    assert kid.pid != first and kid.restarts == 1 and kid.state == "running"
    await kid.stop(5.0)
    await running
    assert kid.state == "stopped" and kid.pid == 0


async def test_repeated_deaths_wait_and_a_stop_ends_the_wait():
    watch = Watch()
    kid = child("raise SystemExit(3)", watch, base=60.0, cap=60.0)
    running = asyncio.create_task(kid.run())
    while len(watch.deaths) < 2:
        watch.on_death.clear()
        await watch.on_death.wait()
    assert kid.state == "waiting"
    assert [how for how, _ in watch.deaths] == ["exited with status 3"] * 2
    assert 30.0 <= watch.deaths[1][1] <= 60.0
    await kid.stop(5.0)
    await running
    assert kid.state == "stopped"


async def test_a_child_that_ignores_sigterm_is_killed():
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True);"
    watch = Watch()
    kid = child(code + "time.sleep(60)", watch)
    running = asyncio.create_task(kid.run())
    while not kid.tail:  # noqa: ASYNC110 - it says so through a pipe
        await asyncio.sleep(0.01)
    pid = kid.pid
    await kid.stop(0.05)
    await running
    assert not alive(pid) and watch.deaths == []


async def test_what_cannot_be_started_says_why():
    watch = Watch()
    launched = []
    launch = Launch(["/nonexistent/program"], started=lambda: launched.append(True))
    kid = Child("kid", lambda: launch, watch, Backoff(random.Random(1), base=60.0, cap=60.0))
    running = asyncio.create_task(kid.run())
    await watch.on_death.wait()
    assert "could not be started: [Errno 2] No such file" in watch.deaths[0][0]
    assert launched[0]
    await kid.stop(1.0)
    await running


async def test_output_comes_line_by_line_with_the_childs_name(caplog):
    code = f"""
import sys
print("one"); print("two", file=sys.stderr, flush=True)
sys.stdout.write("x" * {MAX_LINE + 10} + "\\n\\n"); sys.stdout.flush()
sys.stdout.buffer.write(b"\\xff end without newline")
"""
    watch = Watch()
    caplog.set_level(logging.INFO)
    kid = child(code, watch, base=60.0, cap=60.0)
    running = asyncio.create_task(kid.run())
    await watch.on_death.wait()
    lines = [record.getMessage() for record in caplog.records if record.name == "penstock.kid"]
    first = lines[: lines.index("\N{REPLACEMENT CHARACTER} end without newline") + 1]
    assert sorted(first[:2]) == ["one", "two"]
    assert first[2:4] == ["x" * MAX_LINE, "x" * 10]
    await kid.stop(1.0)
    await running


async def test_a_watcher_that_fails_ends_the_process(caplog):
    class Failing(Watch):
        async def running(self, child):
            raise RuntimeError("no use for it")

    watch = Failing()
    kid = child(FOREVER, watch, base=60.0, cap=60.0)
    running = asyncio.create_task(kid.run())
    await watch.on_death.wait()
    assert watch.deaths[0][0] == "was killed by SIGKILL"
    assert "no use for it" in caplog.text
    await kid.stop(1.0)
    await running


async def test_a_cancelled_run_leaves_no_process():
    watch = Watch()
    kid = child(FOREVER, watch)
    running = asyncio.create_task(kid.run())
    await watch.up.wait()
    pid = kid.pid
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no parent-death signal")
def test_children_die_with_a_parent_that_is_killed(tmp_path):
    code = f"""
import asyncio, random, sys
from gateway.process import Backoff, Child, Launch
class Watch:
    async def running(self, child):
        print(child.pid, flush=True)
        await asyncio.Event().wait()
    def died(self, child, how, wait_s): pass
launch = Launch([sys.executable, "-c", {FOREVER!r}])
asyncio.run(Child("kid", lambda: launch, Watch(), Backoff(random.Random(1))).run())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        # A descriptor of the child's own: it says when that very process has ended.
        watched = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
    try:
        assert select.select([watched], [], [], 10.0)[0] == [watched]
    finally:
        os.close(watched)


@given(
    st.lists(st.floats(0.0, 100.0), min_size=1, max_size=50),
    st.integers(0, 2**32),
)
def test_backoff_is_free_after_a_stable_run_bounded_and_never_shrinks_its_longest(runs, seed):
    backoff = Backoff(random.Random(seed), base=0.5, cap=30.0, stable_s=10.0)
    deaths = 0
    for ran_s in runs:
        deaths = 1 if ran_s >= 10.0 else deaths + 1
        wait_s = backoff.died(ran_s)
        longest = 0.0 if deaths == 1 else min(30.0, 0.5 * 2 ** (deaths - 2))
        assert longest / 2 <= wait_s <= longest


def test_a_thousand_deaths_are_no_overflow():
    backoff = Backoff(random.Random(1))
    assert max(backoff.died(0.0) for _ in range(3000)) <= 30.0
