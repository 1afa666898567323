from __future__ import annotations

import asyncio
import threading
import time
from urllib.request import urlopen

import pytest

from bench.load.drive import CannotConnect, Drive
from bench.load.spec import LoadReport, LoadSpec


async def load(url, progress=None, **how) -> LoadReport:
    how = {"method": "GET", "connections": 4, "seconds": 0.3, "timeout_s": 1.0, **how}
    return await Drive(LoadSpec(url=url, **how), progress).run()


def balanced(report: LoadReport) -> bool:
    return report.sent == sum(report.statuses.values()) + sum(report.errors.values())


async def test_a_closed_loop_sends_when_it_was_answered(base):
    report = await load(f"{base}/")
    assert report.ok == report.latency.count == report.statuses["200"] > 4
    assert balanced(report)
    assert not report.failed
    assert report.received >= report.ok * len("HTTP/1.1 200 X\r\ncontent-length: 2\r\n\r\nok")


async def test_no_more_requests_are_under_way_than_there_are_connections(base):
    # Each takes a tenth of a second: in 0.3 s, 2 connections can have at most 3 answers each.
    report = await load(f"{base}/slow", connections=2)
    assert 2 <= report.ok <= 6
    assert report.latency.percentile(1) >= 0.1


async def test_an_open_loop_sends_what_is_due_whatever_the_answers_take(base):
    report = await load(
        f"{base}/slow", rate=200, arrivals="constant", connections=100, seconds=0.298
    )
    assert report.sent == report.ok == 59  # one every 5 ms, the first at 5 ms
    assert balanced(report)


async def test_poisson_arrivals_are_those_of_the_seed(base):
    first = await load(f"{base}/", rate=300, seed=5)
    again = await load(f"{base}/", rate=300, seed=5)
    other = await load(f"{base}/", rate=300, seed=6)
    assert first.sent == again.sent != other.sent


async def test_latency_counts_from_the_intended_time(base):
    # One connection serves ten a second; forty a second are due: the last ones wait for seconds.
    report = await load(
        f"{base}/slow", rate=40, arrivals="constant", connections=1, timeout_s=5.0, seconds=0.49
    )
    assert report.ok == report.sent == 19
    assert report.latency.most / 1e9 > 1.2
    assert report.backlog > 10


async def test_what_is_never_answered_is_counted_and_not_left_out_of_the_percentiles(base):
    report = await load(f"{base}/never", rate=20, connections=2, timeout_s=0.2, seconds=0.5)
    assert report.ok == 0
    assert balanced(report)
    assert report.errors.keys() <= {"timeout", "never sent"}
    assert report.latency.count == report.sent
    assert report.latency.percentile(50) >= 0.2


async def test_statuses_are_told_apart(base):
    report = await load(f"{base}/status/503")
    assert report.ok == 0
    assert report.failed == report.statuses["503"] == report.sent
    assert report.said == {"503": "ok"}
    assert report.latency.count == 0


@pytest.mark.parametrize("path", ["/close", "/drop"])
async def test_a_server_that_closes_gets_new_connections(base, path):
    report = await load(f"{base}{path}")
    assert report.reconnects > 4
    assert balanced(report)
    assert (report.ok > 4) == (path == "/close")
    assert set(report.errors) == (set() if path == "/close" else {"closed"})


async def test_the_warm_up_is_not_counted(base):
    report = await load(f"{base}/", rate=100, arrivals="constant", warmup_s=0.2)
    assert 28 <= report.sent <= 31


async def test_nobody_there_is_said_at_once():
    with pytest.raises(CannotConnect, match="cannot connect"):
        await load("http://127.0.0.1:1/")


async def test_progress_adds_up_to_the_report(base):
    told = []
    report = await load(f"{base}/", told.append, rate=100)
    assert sum(found["ok"] for found in told) <= report.ok
    assert sum(found["ok"] for found in told) > 0
    assert not any(found["failed"] for found in told)


async def test_an_impossible_rate_ends_in_time_and_names_the_generator(base):
    start = time.monotonic()
    report = await load(f"{base}/", rate=2_000_000, seconds=0.2, timeout_s=0.2)
    assert time.monotonic() - start < 5
    assert balanced(report)
    assert report.limit is not None
    assert report.statuses  # answers were read although requests were always due


async def test_batches_are_counted_and_not_the_requests_that_met_them(base):
    report = await load(f"{base}/timed", connections=1, rate=400, timing=True)
    assert report.timed == report.ok == report.sent
    # As many answers of batches of 2 as of 6: three times as many of the batches were of 2.
    assert report.mean_batch == pytest.approx(3, rel=0.05)
    assert (await load(f"{base}/timed", connections=1)).mean_batch is None


async def test_nothing_is_left_behind(base):
    await load(f"{base}/slow", rate=50)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_stalls_is_seen_by_an_open_loop_and_hardly_by_a_closed_one(base):
    # All of it stands still for 0.4 of 0.8 s: half of all users would have come meanwhile, and had
    # to wait. A closed loop sends nothing meanwhile, so one answer a connection shows the stall.
    asyncio.get_running_loop().call_later(0.2, urlopen_in_thread, f"{base}/stall")
    how = {"connections": 4, "seconds": 0.8, "timeout_s": 5.0}
    seen = await load(f"{base}/", rate=500, arrivals="constant", **how)
    assert seen.ok == seen.sent and not seen.failed
    assert 1 - seen.latency.share_within(0.1) > 0.3
    asyncio.get_running_loop().call_later(0.2, urlopen_in_thread, f"{base}/stall")
    hidden = await load(f"{base}/", **how)
    assert 1 - hidden.latency.share_within(0.1) < 0.1


def urlopen_in_thread(url):
    threading.Thread(target=lambda: urlopen(url).close(), daemon=True).start()
