"""`python -m backends serve` as a process: started, killed, stopped and reloaded for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.checkpoint import is_quarantined, publish
from backends.checkpoint.records import seal, unseal
from backends.wire import Kind
from tests.backends.fakes import BlockingGateway, Scale, commit_model, flip_a_byte, unpack, x

ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-m", "backends", "serve"]
SCALE = 'model = "m"\nthreads = 1\ndevice = "cpu"\nclass = "tests.backends.fakes:Scale"\n'
SLOW = SCALE.replace("Scale", "Slow") + "config = { seconds = 0.3 }\n"
FOLLOW = 'model = "m"\nthreads = 1\ndevice = "cpu"\nrun = "run"\npoll_s = 0.02\nprobation_s = 0.2\n'


class Replica:
    def __init__(self, folder, text, *arguments):
        file = folder / "replica.toml"
        file.write_text(text)
        self.path = str(folder / "r.sock")
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*SERVE, str(file), "--listen", f"unix:{self.path}", *arguments],
                cwd=ROOT,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def connect(self):
        """Before torch is there: the socket comes first."""
        end = time.monotonic() + 30
        while True:
            try:
                return BlockingGateway(self.path)
            except (FileNotFoundError, ConnectionRefusedError):
                assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
                time.sleep(0.01)

    def events(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def start(folder):
    replicas = []

    def start(text, *arguments):
        replicas.append(Replica(folder, text, *arguments))
        return replicas[-1]

    yield start
    for replica in replicas:
        if replica.process.poll() is None:
            replica.process.kill()
            replica.process.wait()


@contextmanager
def ready(replica):
    gateway = replica.connect()
    gateway.until(lambda status: status.state == "ready")
    try:
        yield gateway
    finally:
        gateway.close()


def test_it_loads_serves_drains_and_ends(start):
    replica = start(SLOW, "--set", "slots=3")
    with ready(replica) as gateway:
        assert gateway.status.slots == 3
        assert gateway.status.pid == replica.process.pid
        ids = [gateway.execute(Scale.signature, x(1.0), x(2.0)) for _ in range(3)]
        running = gateway.execute(Scale.signature, *[x(3.0)] * 8)
        gateway.control("status")  # what was sent before has been taken in
        replica.process.send_signal(signal.SIGTERM)
        gateway.until(lambda status: status.state == "draining")
        refused = gateway.execute(Scale.signature, x(1.0))
        assert gateway.answer(refused).kind == Kind.ERROR
        for id in (*ids, running):
            assert gateway.answer(id).kind == Kind.RESULT
    assert replica.process.wait(30) == 0
    assert not os.path.exists(replica.path)
    names = [event["event"] for event in replica.events()]
    assert names[0] == "listening"
    assert {"booted", "ready", "gateway.connected", "draining", "stopped"} <= set(names)


def test_killed_in_a_batch_and_started_again_on_the_same_socket(start):
    replica = start(SLOW)
    with ready(replica) as gateway:
        id = gateway.execute(Scale.signature, x(1.0))
        gateway.control("status")
        replica.process.kill()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            gateway.answer(id)
    replica.process.wait()
    assert os.path.exists(replica.path)
    again = start(SCALE)
    with ready(again) as gateway:
        (answer,), version = gateway.ask(Scale.signature, x(4.0))
        assert (answer["y"].item(), version) == (8.0, "0-static")
    assert again.stop() == 0


def test_a_device_that_hangs_does_not_keep_it_from_ending(start):
    replica = start(SLOW.replace("0.3", "1000"), "--set", "drain_s=0.1")
    # The warm-up takes as long, so it is not ready: the end must come all the same.
    gateway = replica.connect()
    gateway.until(lambda status: status.reason.startswith("loading"))
    assert replica.stop() == 0
    gateway.close()


def test_hot_reload_under_traffic_with_a_corrupt_version_in_between(start, run):
    first = commit_model(run, 1, Scale(1.0))
    publish(run, "stable", 1)
    replica = start(FOLLOW)
    answered, failed, done = {}, [], threading.Event()

    def traffic():
        with ready(replica) as gateway:
            while not done.is_set():
                frame = gateway.answer(gateway.execute(Scale.signature, x(1.0), x(1.0)))
                if frame.kind != Kind.RESULT:
                    failed.append(frame.json())
                    continue
                got = {answer["y"].item() for answer in unpack(frame)}
                answered.setdefault(frame.json()["version"], set()).update(got)

    with ready(replica) as gateway:
        threads = [threading.Thread(target=traffic) for _ in range(2)]
        for thread in threads:
            thread.start()
        second = commit_model(run, 2, Scale(2.0))
        publish(run, "stable", 2)
        gateway.until(lambda status: status.version == second.version and status.reload == "idle")
        # Damaged before it is published, as a disk would do it afterwards.
        bad = commit_model(run, 3, Scale(3.0))
        flip_a_byte(run.folder(3))
        forge(run, bad)
        gateway.until(lambda status: bad.version in status.reason)
        assert gateway.status.version == second.version
        fourth = commit_model(run, 4, Scale(4.0))
        publish(run, "stable", 4)
        gateway.until(lambda status: status.version == fourth.version)
        time.sleep(0.1)
        done.set()
        for thread in threads:
            thread.join(30)
    assert replica.stop() == 0
    assert failed == []
    assert answered == {
        first.version: {1.0},
        second.version: {2.0},
        fourth.version: {4.0},
    }
    assert is_quarantined(run, bad.hash)


def forge(run, manifest):
    """The channel points at what `publish` would refuse: the damage came after its look."""
    path = run.channels / "stable.json"
    record = unseal(path.read_bytes(), path.name)
    now = {"generation": record["generation"] + 1, "step": manifest.step, "hash": manifest.hash}
    path.with_suffix(".new").write_bytes(seal({**record, **now}))
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (SCALE + "thraeds = 1", [], 'replica.toml:5: thraeds: unknown key; did you mean "threads"'),
        (SCALE, ["--set", "slots=0"], "--set slots=0: slots: expected a whole number"),
        (SCALE, ["--listen", "nowhere"], 'expected "unix:/path" or "tcp:host:port", got "nowhere"'),
    ],
)
def test_what_cannot_be_started_exits_with_2_and_one_line(folder, text, arguments, said):
    (folder / "replica.toml").write_text(text)
    done = subprocess.run(
        [*SERVE, str(folder / "replica.toml"), "--listen", f"unix:{folder}/r.sock", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said in line


def test_help_has_an_example_and_every_key():
    for arguments, parts in (([], ["serve"]), (["serve"], ["digits.replica.toml", "probation_s"])):
        done = subprocess.run(
            [sys.executable, "-m", "backends", *arguments, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        for part in parts:
            assert part in done.stdout


def test_the_sockets_side_loads_no_torch():
    code = (
        "import sys, backends.__main__, backends.tensor.replica\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
