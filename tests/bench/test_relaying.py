"""The scripted upstream, the relay's floor, and the check of a relay's answers."""

from __future__ import annotations

import io
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench import relaying
from bench.asking import post
from bench.contenders import JSON
from bench.relaying import DIRECT, FLOOR, OURS, Contest, check, request
from bench.rivals.relays import PATH
from bench.scenarios import Options
from bench.series import MeasureFailed
from bench.serving import ServerFailed
from bench.upstreams.scripted import CHUNKS, request_end

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n"
PLAIN = HEAD + b"Content-Length: 4\r\n\r\n{  }"
CHUNKED = HEAD + b"Transfer-Encoding: Chunked\r\n\r\n4\r\n{  }\r\n0\r\n\r\n"
BODILESS = b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n"


@given(st.sampled_from((PLAIN, CHUNKED, BODILESS)), st.data())
def test_a_request_ends_where_its_body_does(first, data):
    cut = data.draw(st.integers(0, len(first) - 1))
    assert request_end(first[:cut]) == 0
    assert request_end(first) == len(first)
    assert request_end(first + PLAIN[: data.draw(st.integers(0, len(PLAIN)))]) == len(first)


@pytest.fixture
def options(tmp_path):
    console = Console(file=io.StringIO())
    return Options(quick=True, seed=1, rivals=(), folder=tmp_path, console=console)


@pytest.mark.parametrize("stream", [False, True])
def test_ours_and_the_floor_give_the_scripts_answer_and_are_metered(options, stream):
    with relaying.cores() as core, ExitStack() as stack:
        contest = Contest(options, stack, core, (), stream)
        contest.start_upstreams()
        assert contest.start(contest.near) == [OURS, FLOOR]
        contest.add_direct()
        for name in (OURS, FLOOR, DIRECT):
            check(contest.up[name], stream=stream)
        assert contest.burst(OURS, 2, 1, metered=True).ok > 10
        assert contest.cpu[OURS] > 0 and contest.memory[OURS] > 10
        # The other way to ask is answered otherwise, which the check tells.
        contest.up[FLOOR].path = "/v1/models"
        with pytest.raises(MeasureFailed, match="answered"):
            check(contest.up[FLOOR], stream=stream)


def test_a_stream_has_its_chunks_and_its_end(options):
    with ExitStack() as stack:
        contest = Contest(options, stack, None, (), True)
        contest.start_upstreams(step_ms=0.1)
        body = post(f"http://127.0.0.1:{contest.ports[1]}{PATH}", request(stream=True), JSON)
    events = body.split(b"\n\n")
    assert len(events) == CHUNKS + 2  # [DONE], and nothing after the last
    assert events[-2] == b"data: [DONE]"


def test_a_relay_that_cannot_start_is_told_and_left_out(options, monkeypatch):
    def fails(folder, upstreams, core):
        raise ServerFailed("no such program")

    monkeypatch.setattr(relaying, "launch_ours", fails)
    with ExitStack() as stack:
        contest = Contest(options, stack, None, (), False)
        contest.start_upstreams()
        assert contest.start([OURS]) == []
    assert contest.failures == {OURS: "no such program"}
