"""The hot path's price in instructions does not creep up unseen."""

from __future__ import annotations

import pytest

from bench import counting
from bench.serving import ROOT
from gateway.oip import parse


def test_a_request_executes_no_more_bytecode_than_is_recorded():
    before = counting.recorded()
    if before is None:
        pytest.skip(f"nothing is recorded for Python {counting.version()}")
    found = counting.bytecode()
    assert counting.grown(found, before) == [], (
        "if the change is worth it: python -m bench.counting --write"
    )


def test_what_grows_beyond_the_tolerance_is_named():
    before = {"lane": 300.0, "all": 2000.0}
    assert counting.grown({"lane": 314.0, "all": 2059.0}, before) == []
    assert counting.grown({"lane": 316.0, "all": 2061.0}, before) == [
        "lane: 316 instructions a request, 300 are recorded",
        "all: 2061 instructions a request, 2000 are recorded",
    ]


def test_a_loop_that_slips_into_the_parse_is_found(monkeypatch):
    before = counting.bytecode()
    source = """
def slower(text):
    for _ in range(20):
        pass
    return load(text)
"""
    made = {"load": parse.load}
    exec(compile(source, f"{ROOT}/gateway/oip/parse.py", "exec"), made)
    monkeypatch.setattr(parse, "load", made["slower"])
    (said, *_) = counting.grown(counting.bytecode(), before)
    assert said.startswith("protocol: ")


def test_a_file_belongs_to_one_part():
    parts = {
        "gateway/lane/connection.py": "lane",
        "gateway/oip/parse.py": "protocol",
        "gateway/policy/batching.py": "policy",
        "gateway/model.py": "model",
        "backends/wire/codec.py": "wire",
        "bench/mirror.py": None,
    }
    assert {path: counting.part_of(f"{ROOT}/{path}") for path in parts} == parts
    assert counting.part_of("/usr/lib/python3.11/asyncio/events.py") is None
