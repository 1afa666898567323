"""The relay with real processes: a gateway, HTTP servers that die, the OpenAI SDK, WebSockets."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import openai
import pytest
import websockets

from tests.e2e.fleet import ROOT, GatewayProcess, wait_until

UPSTREAM = Path(__file__).parent / "http_upstream.py"


def model(name: str, count: int, more: str = "") -> str:
    command = f'["{sys.executable}", "{UPSTREAM}", "{{port}}"]'
    return f"""
[[models]]
name = "{name}"
{more}
[[models.replicas]]
name = "{name}"
kind = "http"
count = {count}
command = {command}
health = "/health"
health_s = 0.5
"""


CONFIG = (
    model("llm", 2)
    + model("web", 3, '[models.relay]\napi = "web"\n')
    + '[[routes]]\npath = "/app"\nmodel = "web"\nstrip_prefix = true\n'
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    running = GatewayProcess(tmp_path_factory.mktemp("relay"), CONFIG)
    try:
        running.wait_ready()
        yield running
        assert running.stop() == 0
    finally:
        running.process.kill()
        running.process.wait()


def counters(gateway, name):
    found = next(model for model in gateway.status()["models"] if model["name"] == name)
    counted = found["counters"]
    assert counted["accepted"] == sum(n for key, n in counted.items() if key != "accepted")
    return counted


def idle(gateway, name):
    wait_until(f"{name} to be idle", lambda: counters(gateway, name)["live"] == 0)
    return counters(gateway, name)


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


MESSAGES = [{"role": "user", "content": "hello"}]


def test_the_sdk_lists_asks_and_streams(client):
    assert [found.id for found in client.models.list()] == ["llm"]
    answer = client.chat.completions.create(model="llm", messages=MESSAGES)
    assert answer.choices[0].message.content == "hello"
    stream = client.chat.completions.create(model="llm", messages=MESSAGES, stream=True)
    assert [chunk.choices[0].delta.content for chunk in stream] == ["h", "e", "l", "l", "o"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="none", messages=MESSAGES)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"


def test_the_sdk_raises_when_a_stream_breaks_instead_of_waiting(gateway, client):
    stream = client.chat.completions.create(model="llm", messages=MESSAGES, stream=True, user="die")
    with pytest.raises(openai.APIError) as broken:
        for _ in stream:
            pass
    assert broken.value.code == "bad_replica"
    wait_until("both to be back", lambda: all(r["state"] == "ready" for r in gateway.replicas(0)))


def test_leaving_a_stream_frees_its_replica_at_once(gateway, client):
    before = idle(gateway, "llm")["cancelled"]
    stream = client.chat.completions.create(
        model="llm", messages=MESSAGES, stream=True, user="slow"
    )
    next(iter(stream))
    stream.close()
    assert idle(gateway, "llm")["cancelled"] == before + 1
    assert sum(replica["in_flight"] for replica in gateway.replicas(0)) == 0


async def test_websockets_pass_with_their_subprotocol_and_close_code(gateway):
    url = gateway.url.replace("http", "ws") + "/app/socket"
    async with websockets.connect(url, subprotocols=["chat"]) as socket:
        assert socket.subprotocol == "chat"
        await socket.send("hello")
        assert await socket.recv() == "hello"
        await socket.send(b"\x00" * 300_000)
        assert await socket.recv() == b"\x00" * 300_000
        await socket.send("close")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "bye")
    await asyncio.to_thread(idle, gateway, "web")


def test_a_killed_upstream_costs_no_request_that_may_be_repeated(gateway):
    url, answers, failures, over = f"{gateway.url}/app/pid", [], [], threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            try:
                with urllib.request.urlopen(url, timeout=20) as reply:
                    answers.append(int(reply.read()))
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until("all to have answered", lambda: len(set(answers)) == 3)
        victim = answers[-1]
        os.kill(victim, signal.SIGKILL)
        served = len(answers)
        wait_until("a new process to answer", lambda: len(set(answers[served:]) - {victim}) == 3)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert idle(gateway, "web")["failed"] == 0


def test_a_drained_replica_gets_nothing(gateway):
    def drain(verb: str) -> None:
        request = urllib.request.Request(f"{gateway.admin}/replicas/web-1/{verb}", method="POST")
        urllib.request.urlopen(request, timeout=5).close()

    drain("drain")
    wait_until("the drain", lambda: gateway.replicas(1)[1]["state"] == "draining")
    for _ in range(12):
        with urllib.request.urlopen(f"{gateway.url}/app/pid", timeout=5) as reply:
            assert reply.headers["x-served-by"] != "web-1"
    drain("undrain")
    wait_until("its return", lambda: gateway.replicas(1)[1]["state"] == "ready")


def test_another_process_joins_when_the_file_is_read_again(gateway):
    gateway.config.write_text(gateway.config.read_text().replace("count = 3", "count = 4"))
    gateway.process.send_signal(signal.SIGHUP)
    states = lambda: [replica["state"] for replica in gateway.replicas(1)]  # noqa: E731
    wait_until("the fourth", lambda: states() == ["ready"] * 4)
    gateway.config.write_text(gateway.config.read_text().replace("count = 4", "count = 3"))
    gateway.process.send_signal(signal.SIGHUP)
    wait_until("its end", lambda: states() == ["ready"] * 3)


def test_metrics_count_relayed_requests_as_they_do_others(gateway):
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    web = [line for line in lines if 'model="web"' in line]
    assert any(line.startswith("penstock_requests_total") and 'end="done"' in line for line in web)
    assert any(line.startswith("penstock_replica_ready") and line.endswith(" 1.0") for line in web)


def test_the_flask_example_keeps_its_users(tmp_path):
    text = (ROOT / "examples" / "flask" / "serve.toml").read_text()
    text = text[text.index("[[models]]") :]
    (tmp_path / "app.py").symlink_to(ROOT / "examples" / "flask" / "app.py")
    running = GatewayProcess(tmp_path, text)
    try:
        running.wait_ready()
        wait_until("all", lambda: all(r["state"] == "ready" for r in running.replicas()))
        users = {}
        for name in ("Ada", "Grace", "Barbara", "Karen", "Margaret", "Radia"):
            jar = urllib.request.HTTPCookieProcessor(CookieJar())
            users[name] = urllib.request.build_opener(jar)
            page = users[name].open(f"{running.url}/login", f"name={name}".encode(), timeout=10)
            assert page.read().startswith(f"Hello, {name}.".encode())
        processes = set()
        for _ in range(3):
            for name, user in users.items():
                page = user.open(f"{running.url}/", timeout=10).read().decode()
                assert page.startswith(f"Hello, {name}.")
                processes.add(page.split()[-1])
        assert len(processes) > 1
        page = users["Ada"].open(f"{running.url}/logout", b"", timeout=10).read()
        assert page.startswith(b"Nobody")
        assert running.stop() == 0
    finally:
        running.process.kill()
        running.process.wait()
