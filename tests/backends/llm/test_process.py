"""A language model's process: a stream outlives SIGTERM, and no rank outlives another."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager

import orjson
import pytest

from backends.checkpoint import Run, publish
from backends.wire import Call, Kind, split_stream
from tests.backends.llm.asking import events
from tests.backends.llm.test_replica import HI, commit_decoder
from tests.backends.test_process import Replica

TEXT = 'model = "m"\nkind = "llm"\nrun = "run"\nthreads = 1\ndevice = "cpu"\npages = 64\n'


@pytest.fixture
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("p")


@contextmanager
def served(folder, *arguments):
    commit_decoder(Run(folder / "run"), 1)
    publish(Run(folder / "run"), "stable", 1)
    replica = Replica(folder, TEXT, *arguments)
    gateway = replica.connect()
    try:
        gateway.until(lambda status: status.state == "ready")
        yield replica, gateway
    finally:
        gateway.close()
        replica.process.kill()
        replica.process.wait(30)


def call(gateway, id, **more):
    body = orjson.dumps({**HI, "stream": True, **more})
    gateway._send(Kind.CALL, id, Call(surface="chat").to_json(), [body])


def pieces(gateway):
    """Of one call, up to its last."""
    while True:
        frame = gateway._read(lambda frame: frame.kind in (Kind.STREAM, Kind.ERROR))
        if frame.kind == Kind.ERROR:
            raise AssertionError(frame.json())
        for piece, data in split_stream(frame):
            yield bytes(data)
            if piece.final:
                return


def test_a_stream_that_has_begun_is_ended_before_the_process_is(folder):
    with served(folder) as (replica, gateway):
        call(gateway, 1, max_tokens=60, ignore_eos=True)
        stream = pieces(gateway)
        first = next(stream)
        replica.process.send_signal(signal.SIGTERM)
        whole = first + b"".join(stream)
        *chunks, done = events(whole)
        assert done == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert replica.process.wait(30) == 0
        stopped = [event for event in replica.events() if event["event"] == "stopped"]
        assert [event["settled"] for event in stopped] == [True]


def test_when_a_rank_is_lost_all_end_and_say_so(folder):
    with served(folder, "--set", "tensor_parallel=2") as (replica, gateway):
        call(gateway, 1)
        assert events(b"".join(pieces(gateway)))[-1] == "[DONE]"
        children = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(replica.process.pid)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        (rank,) = (int(line.split()[0]) for line in children if "spawn_main" in line)
        os.kill(rank, signal.SIGKILL)
        # Idle as it is: nobody has to ask first.
        assert replica.process.wait(60) == 1, "the supervisor starts another"
