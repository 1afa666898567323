from __future__ import annotations

import json

import pytest

from bench.load.connection import render
from bench.load.presets import PRESETS, with_preset
from bench.load.spec import LoadReport, LoadSpec

URL = "http://127.0.0.1:8080/v2/models/m/infer?x=1"


def test_a_spec_travels_as_json():
    spec = LoadSpec(url=URL, headers={"a": "b"}, body=b"\x00\xff", rate=2.5)
    assert LoadSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_request_is_whole():
    request = render(LoadSpec(url=URL, headers={"X-Priority": "1"}, body=b"{}"))
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/m/infer?x=1 HTTP/1.1\r\n")
    assert b"host: 127.0.0.1:8080" in head
    assert b"content-length: 2" in head
    assert b"x-priority: 1" in head
    assert body == b"{}"


def test_a_header_cannot_start_another():
    with pytest.raises(ValueError, match="line break"):
        render(LoadSpec(url=URL, headers={"a": "b\r\nc: d"}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"url": "127.0.0.1:8080"}, "expected a URL"),
        ({"url": URL, "method": "HEAD"}, "HEAD"),
        ({"url": URL, "rate": 0.0}, "rate"),
        ({"url": URL, "connections": 0}, "connection"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        LoadSpec(**change)


def test_processes_share_connections_and_rate():
    shares = [LoadSpec(url=URL, connections=10, rate=90.0).share(i, 4) for i in range(4)]
    assert [share.connections for share in shares] == [3, 3, 2, 2]
    assert sum(share.rate for share in shares) == 90
    assert len({share.seed for share in shares}) == 4


def test_reports_of_processes_add_up():
    first = LoadReport(seconds=2, sent=3, ok=2, statuses={"200": 2, "500": 1}, cpu_share=0.5)
    second = LoadReport(seconds=2, sent=2, ok=1, statuses={"200": 1}, errors={"timeout": 1})
    second.latency.record(10**6)
    first.add(LoadReport.from_json(json.loads(json.dumps(second.to_json()))))
    assert (first.sent, first.ok, first.rate, first.failed) == (5, 3, 1.5, 2)
    assert first.statuses == {"200": 3, "500": 1}
    assert first.latency.count == 1
    assert first.cpu_share == 0.5


def test_a_busy_generator_and_a_late_one_say_so():
    assert LoadReport().limit is None
    assert "core" in LoadReport(cpu_share=0.97).limit
    late = LoadReport()
    late.late.record(5_000_000)
    assert "late" in late.limit


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_fill_in_path_and_body(name):
    bare = with_preset(LoadSpec(url="http://h:1/", method="GET"), PRESETS[name])
    assert (bare.method, bare.url) == ("POST", f"http://h:1{PRESETS[name].path}")
    assert bare.body == with_preset(LoadSpec(url="http://h:1"), PRESETS[name]).body
    there = with_preset(
        LoadSpec(url="http://h:1/mine", headers={"content-type": "x"}), PRESETS[name]
    )
    assert there.url == "http://h:1/mine"
    assert there.headers["content-type"] == "x"
