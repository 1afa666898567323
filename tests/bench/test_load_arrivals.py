"""When requests are due: rates, bursts, traces; and where the knee is."""

from __future__ import annotations

from itertools import islice, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.__main__ import main
from bench.load import trace
from bench.load.arrivals import arrivals
from bench.load.connection import render
from bench.load.drive import Drive
from bench.load.knee import Point, knee, passed, rates
from bench.load.spec import LoadSpec
from bench.load.trace import BadTrace, Recorded

URL = "http://h:1/a"


@pytest.mark.parametrize("kind", ["poisson", "constant", "bursts"])
def test_the_mean_rate_is_what_was_asked_for(kind):
    spec = LoadSpec(url=URL, rate=50.0, arrivals=kind, seed=3)
    due = [at for at, _ in islice(arrivals(spec, b"r", render), 20_000)]
    assert due == sorted(due)
    assert len(due) / due[-1] == pytest.approx(50, rel=0.06)
    assert due == [at for at, _ in islice(arrivals(spec, b"r", render), 20_000)]


def test_bursts_are_more_uneven_than_poisson():
    def unevenness(kind):
        spec = LoadSpec(url=URL, rate=100.0, arrivals=kind, seed=3)
        due = [at for at, _ in takewhile(lambda d: d[0] < 300, arrivals(spec, b"", render))]
        counts = [0] * 300
        for at in due:
            counts[int(at)] += 1
        mean = sum(counts) / 300
        return sum((c - mean) ** 2 for c in counts) / 300 / mean

    assert unevenness("poisson") < 1.5 < 5 < unevenness("bursts")


RECORDED = st.builds(
    Recorded,
    at=st.just(0.0),
    body=st.none() | st.binary(max_size=20) | st.just(b'{"a": [1, 2]}'),
    path=st.none() | st.just("/v1/x?y=1"),
    headers=st.dictionaries(st.just("x-priority"), st.just("1")),
    method=st.none() | st.just("PUT"),
)


@given(requests=st.lists(RECORDED, min_size=1, max_size=5))
def test_a_trace_that_was_written_reads_the_same(tmp_path_factory, requests):
    file = tmp_path_factory.mktemp("trace") / "t.jsonl"
    file.write_text("# a comment\n\n" + "".join(one.line() + "\n" for one in requests))
    found = trace.read(file)
    assert [(r.path, dict(r.headers)) for r in found] == [(r.path, r.headers) for r in requests]
    for read, written in zip(found, requests, strict=True):
        same = read.body == written.body
        assert same or trace.Recorded(0.0, read.body).line() == Recorded(0.0, written.body).line()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[]", "line 2: expected a JSON object"),
        ("{", "expected a JSON object"),
        ('{"at": 1, "url": "/"}', "no key 'url'"),
        ('{"at": 0.5}', "at: expected seconds from 1 on"),
        ('{"at": true}', "at: expected"),
        ('{"at": 2, "path": "x"}', "path: expected"),
        ('{"at": 2, "headers": {"a": 1}}', "headers: expected"),
        ('{"at": 2, "headers": {"a b": "1"}}', "headers: 'a b'"),
        ('{"at": 2, "headers": {"a": "1\\n"}}', "headers: 'a'"),
        ('{"at": 2, "headers": {"Content-Length": "1"}}', "generator's own"),
        ('{"at": 2, "method": "HEAD"}', "method: expected"),
        ('{"at": 2, "path": "/a b"}', "path: expected"),
        ('{"at": 2, "body": "", "body_base64": ""}', "not both"),
        ('{"at": 2, "body_base64": "?"}', "expected base64"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, says):
    file = tmp_path / "t.jsonl"
    file.write_text('{"at": 1}\n' + line)
    with pytest.raises(BadTrace, match=says.replace("?", r"\?")):
        trace.read(file)


def test_processes_take_turns_at_a_trace_and_render_what_differs(tmp_path):
    file = tmp_path / "t.jsonl"
    lines = ['{"at": 0}', '{"at": 1, "body": {"n": 1}}', '{"at": 3, "path": "/b"}']
    file.write_text("\n".join(lines))
    spec = LoadSpec(url=URL, trace=str(file), speed=2.0, connections=2, body=b"own")
    request = render(spec)
    first, second = (list(arrivals(spec.share(i, 2), request, render)) for i in range(2))
    assert [at for at, _ in first] == [0.0, 1.5]
    assert [at for at, _ in second] == [0.5]
    assert first[0][1] == request
    assert first[1][1].startswith(b"POST /b HTTP/1.1") and first[1][1].endswith(b"own")
    assert second[0][1].endswith(b'{"n": 1}')


def test_a_recorded_request_has_its_own_method_or_one_that_fits_its_body(tmp_path):
    file = tmp_path / "t.jsonl"
    lines = ['{"at": 0}', '{"at": 1, "body": "x"}', '{"at": 2, "method": "PUT", "body": "x"}']
    file.write_text("\n".join(lines))
    spec = LoadSpec(url=URL, method="GET", trace=str(file))
    found = [sent.split()[0] for _, sent in arrivals(spec, render(spec), render)]
    assert found == [b"GET", b"POST", b"PUT"]


async def test_a_trace_is_replayed_at_its_times(base, tmp_path):
    file = tmp_path / "t.jsonl"
    paths = ["/", "/status/503", "/slow"]
    lines = [Recorded(0.01 * i, path=paths[i % 3]).line() for i in range(30)]
    file.write_text("\n".join(lines))
    spec = LoadSpec(url=base, method="GET", trace=str(file), seconds=0.4, connections=8)
    report = await Drive(spec).run()
    assert report.sent == 30
    assert report.statuses == {"200": 20, "503": 10}


def test_a_trace_by_command(base, tmp_path, capsys):
    file = tmp_path / "t.jsonl"
    file.write_text('{"at": 0, "body": "a"}\n{"at": 0.1, "path": "/status/404"}\n')
    assert main(["load", "--url", base, "--trace", str(file), "--connections", "2"]) == 0
    said = capsys.readouterr().out
    assert "status 404" in said and "replayed" in said
    file.write_text("{}")
    assert main(["load", "--url", base, "--trace", str(file)]) == 2
    assert "line 1: at" in capsys.readouterr().err


def test_a_ramp_by_command(base, capsys):
    asked = ["load", "--url", base, "--ramp", "20:60:2", "--seconds", "0.3", "--connections", "4"]
    assert main(asked) in (0, 1)  # what a busy machine carries is not judged here
    said = capsys.readouterr()
    assert "knee" in said.out or "no rate" in said.out
    assert main(["load", "--url", base, "--ramp", "20"]) == 2
    assert main(["load", "--url", base, "--ramp", "20:60", "--rate", "5"]) == 2


def point(rate, answered, p99):
    return Point(rate=rate, answered=answered, p50=p99 / 2, p99=p99, failed=0, limit=None)


def test_the_knee_is_the_last_rate_that_was_carried():
    points = [point(100, 100, 0.010), point(200, 199, 0.012), point(400, 399, 0.045)]
    assert knee(points).rate == 400 and not passed(points)
    points += [point(800, 700, 0.04)]
    assert not passed(points)
    points += [point(1600, 1600, 0.4)]
    assert knee(points).rate == 400 and passed(points)
    assert knee([point(100, 50, 0.01)]) is None


def test_rates_rise_in_equal_ratios():
    assert rates("100:1600:5") == pytest.approx([100, 200, 400, 800, 1600])
    for wrong in ("100", "5:1", "0:1", "1:2:1", "a:b"):
        with pytest.raises(ValueError, match="--ramp"):
            rates(wrong)
