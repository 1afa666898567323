"""`stream`: what relaying event streams costs when the engine costs nothing (target 4).

Two scripted upstreams that write 64 events a stream, one to each open stream in turn, without a
pause: 64 streams at a time for the rate, one for the latency. Otherwise as `relay`.
"""

from __future__ import annotations

from bench.record import Record
from bench.scenarios import Options, scenario
from bench.scenarios.relay import measure


@scenario("stream", "OpenAI event streams of 64 chunks to two upstreams: what relaying them costs")
def stream(options: Options) -> Record:
    return measure(options, "stream", "streams/s", stream=True)
