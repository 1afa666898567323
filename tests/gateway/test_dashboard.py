"""The dashboard: served whole, nothing from elsewhere, right figures, a page that shows them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess

import pytest
from aiohttp import web

from gateway.exposition import render
from gateway.metrics import merge
from gateway.web import STATIC, make_app
from tests.gateway.test_metrics import counter, histogram

FILES = ["index.html", "dashboard.css", "dashboard.js", "metrics.js"]
NODE = shutil.which("node")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
TOKENS = ["penstock_tokens_total", "counter", "Tokens.", ["model", "kind"]]
FIRST = ["penstock_first_token_seconds", "histogram", "S.", ["model"]]
BATCHES = ["penstock_batch_rows", "histogram", "Rows.", ["model"]]

REPLICA = {
    "name": "digits-0", "kind": "native", "state": "ready", "reason": "", "version": "300-1a2b3c4d",
    "versions": ["300-1a2b3c4d"], "reload": "load", "reload_to": "600-5e6f", "pid": 4242,
    "weight": 1.0, "drained": False, "breaker": "half_open", "work": 0.0123, "in_flight": 1,
    "slots": 2, "process": {"pid": 4242, "state": "running", "restarts": 3, "how": ""},
}  # fmt: skip
STATUS = {
    "version": "1.2.3", "state": "serving", "pid": 1, "uptime_s": 3725.0,
    "listen": "http://127.0.0.1:8080", "admin": "http://127.0.0.1:8081", "config": "serve.toml",
    "workers": [{"name": "worker-0", "pid": 77, "state": "ready", "restarts": 0, "rss_mb": 43.2}],
    "models": [
        {
            "name": "digits", "kind": "tensor", "ready": True, "waiting": 5, "slo_ms": 50.0,
            "counters": {"accepted": 9, "done": 7, "failed": 1, "cancelled": 0, "live": 1},
            "replicas": [REPLICA, {**REPLICA, "name": "digits-1", "state": "unreachable",
                                   "reason": "<b>its process</b> exited", "slots": 0, "pid": 0}],
        },
        {
            "name": "chat", "kind": "llm", "ready": True, "waiting": 0, "slo_ms": None,
            "counters": {"accepted": 1, "done": 1, "failed": 0, "cancelled": 0, "live": 0},
            "replicas": [{**REPLICA, "name": "chat-0", "work": 1234.5, "unit": "tokens"}],
        },
    ],
    "events": [{"id": 1, "at": 1700000000.5, "kind": "replica_died", "name": "digits-1",
                "text": "was killed by SIGKILL; started again at once"}],
}  # fmt: skip


class Growing:
    """A gateway whose counters grow with each look: 100 done, each 40 ms, in batches of 8."""

    def __init__(self):
        self.looks = 0

    async def status(self):
        return STATUS

    async def metrics(self):
        self.looks += 1
        n = 100 * self.looks
        latency = {"buckets": [["0.03", 0], ["0.05", n], ["+Inf", n]], "sum": 1.0, "count": n}
        rows = {"buckets": [["+Inf", n / 8]], "sum": float(n), "count": n / 8}
        families = [
            counter([["digits", "done"], n], [["digits", "failed"], 0]),
            ["penstock_request_seconds", "histogram", "S.", ["model"], [["digits"], latency]],
            [*BATCHES, [["digits"], rows]],
            [
                *TOKENS,
                [["chat", "prompt"], n],
                [["chat", "cached"], n / 2],
                [["chat", "completion"], n],
            ],
        ]
        return render(families)


@contextlib.asynccontextmanager
async def served(whole):
    runner = web.AppRunner(make_app(whole), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_every_file_is_there_and_small():
    for name in FILES:
        assert 500 < (STATIC / name).stat().st_size < 20_000


def test_nothing_comes_from_elsewhere():
    for name in FILES:
        text = (STATIC / name).read_text()
        for url in re.findall(r"(?:https?:)?//[a-z][\w.-]+[^\s\"'`)]*", text):
            assert url == "http://www.w3.org/2000/svg", f"{name} names {url}"
        assert "innerHTML" not in text and "eval(" not in text


def test_the_page_has_every_element_that_the_script_fills():
    page = (STATIC / "index.html").read_text()
    for id in re.findall(r'byId\("(\w+)"\)', (STATIC / "dashboard.js").read_text()):
        assert f'id="{id}"' in page
    for path in re.findall(r'(?:src|href)="(static/[^"]+)"', page):
        assert (STATIC.parent / path).is_file()


@pytest.mark.skipif(NODE is None, reason="needs node")
def test_the_figures_are_right(tmp_path):
    before = render(merge([[counter([["m", "done"], 10]), histogram(0, 0, 0)]]))
    rows = {"buckets": [["+Inf", 4]], "sum": 24.0, "count": 4}
    families = [
        counter([["m", "done"], 30], [["m", "failed"], 4], [['other"\\', "done"], 99]),
        histogram(50, 100, 100),
        [*BATCHES, [["m"], rows]],
        [
            *TOKENS,
            *[[["m", kind], n] for kind, n in (("prompt", 80), ("cached", 20))],
            [["m", "completion"], 40],
        ],
        [*FIRST, [["m"], {"buckets": [["1", 4], ["+Inf", 4]], "sum": 2.0, "count": 4}]],
    ]
    texts = json.dumps([before, render(families)])
    script = tmp_path / "check.mjs"
    script.write_text(
        f"""import {{ between, parse, percentile, reading }} from "{STATIC.as_uri()}/metrics.js";
const [one, two] = {texts}.map(parse);
const restarted = between(reading(two, "m", 0), reading(one, "m", 1));
console.log(JSON.stringify({{
  grown: between(reading(one, "m", 0), reading(two, "m", 2)),
  odd: two.some((sample) => sample.labels.model === 'other"\\\\'),
  restarted: restarted.done,
  idle: between(reading(two, "m", 0), reading(two, "m", 1)),
  none: percentile([], 0.5),
  beyond: percentile([[1, 0], [Infinity, 5]], 0.99),
}}));"""
    )
    # Node takes a file for a module by its name alone; ours are modules by the page's word.
    loaded = script.with_name("metrics.mjs")
    loaded.write_text((STATIC / "metrics.js").read_text())
    script.write_text(script.read_text().replace(f"{STATIC.as_uri()}/metrics.js", "./metrics.mjs"))
    found = json.loads(subprocess.run([NODE, script], check=True, capture_output=True).stdout)
    grown, idle = found["grown"], found["idle"]
    assert (grown.pop("tokens"), grown.pop("cached"), grown.pop("first")) == (20, 0.25, 0.5)
    assert grown == {"done": 10, "failed": 2, "p50": 0.1, "p99": 0.982, "batch": 6}
    assert found["odd"] is True and found["restarted"] == 10
    assert (idle.pop("tokens"), idle.pop("cached"), idle.pop("first")) == (0, None, None)
    assert idle == {"done": 0, "failed": 0, "p50": None, "p99": None, "batch": None}
    assert found["none"] is None and found["beyond"] == 1


@pytest.mark.skipif(BROWSER is None, reason="needs a browser")
async def test_a_browser_shows_models_replicas_and_events(tmp_path):
    async with served(Growing()) as url:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        flags += ["--virtual-time-budget=4000", "--dump-dom"]
        browser = await asyncio.create_subprocess_exec(
            BROWSER, *flags, url, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        page = (await browser.communicate())[0].decode()
    shown = re.sub(r"<[^>]+>", " ", page)
    for word in ("digits-0", "300-1a2b3c4d", "load → 600-5e6f", "1 of 2", "half open", "4242"):
        assert word in shown, word
    assert "up 1 h 2 min" in shown and "worker-0" in shown and "43 MB" in shown
    assert "was killed by SIGKILL" in shown
    assert re.search(r"1[,.]?23\d[\d.]* tokens", shown)
    assert "&lt;b&gt;its process&lt;/b&gt; exited" in page  # text, not markup
    found = re.findall(r'class="name">([\w ]+)</div><div class="value">([^<]+)<', page)
    tiles = dict(reversed(found))  # of two models; the first one's where both have it
    assert float(tiles["answers"]) > 0
    assert 30 < float(tiles["median latency"]) <= 50 and tiles["mean batch"] == "8"
    assert float(tiles["tokens"]) > 0 and tiles["cached"] == "50"
    assert re.search(r'<polyline points="[\d. ,]+"', page)
    assert re.search(r'id="trouble"[^>]*hidden', page)
