"""The admin listener over HTTP: views, switches, the key, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.supervised import MODEL, supervised, until

KEY = "correct-horse"


@contextlib.asynccontextmanager
async def admin(folder, **options):
    async with supervised(folder, **options) as running, aiohttp.ClientSession() as session:

        async def ask(method, path, headers=None, **more):
            url = running.supervisor.admin + path
            async with session.request(method, url, headers=headers, **more) as reply:
                text = await reply.text()
                is_json = reply.content_type == "application/json"
                return reply.status, json.loads(text) if is_json else text

        running.ask = ask
        yield running


async def test_views(tmp_path):
    async with admin(tmp_path) as running:
        assert await running.ask("GET", "/healthz") == (200, {"status": "alive"})
        status, body = await running.ask("GET", "/status")
        assert status == 200
        replica = body["models"][0]["replicas"][0]
        assert {"name", "state", "version", "pid", "process"} <= set(replica)
        assert body["workers"][0]["pid"] == running.supervisor.workers[0].child.pid
        status, text = await running.ask("GET", "/metrics")
        families = {family.name for family in text_string_to_metric_families(text)}
        assert {"penstock_requests", "penstock_replica_ready", "penstock_info"} <= families
        status, body = await running.ask("GET", "/events")
        assert body["events"][0]["kind"] == "worker_ready"
        newest = body["events"][-1]["id"]
        assert (await running.ask("GET", f"/events?after={newest}"))[1] == {"events": []}


async def test_switches_reach_every_worker(tmp_path):
    async with admin(tmp_path, server="workers = 2\n") as running:
        ask = running.ask
        assert await ask("POST", "/replicas/r-0/drain") == (
            200,
            {"replica": "r-0", "drained": True},
        )
        body = {"replica": "r-0", "drained": False}
        assert await ask("POST", "/replicas/r-0/undrain") == (200, body)
        found = await ask("POST", "/replicas/r-1/weight", json={"weight": 2})
        assert found == (200, {"replica": "r-1", "weight": 2.0})
        for worker in running.supervisor.workers:
            assert (await worker.call("status"))["told"] == [
                ["drain", {"replica": "r-0"}],
                ["undrain", {"replica": "r-0"}],
                ["weight", {"replica": "r-1", "weight": 2.0}],
            ]


async def test_reload_and_rollback_are_asked_of_each_replica(tmp_path):
    async with admin(tmp_path) as running:
        runtime = running.supervisor.runtime
        await until(lambda: all((runtime / f"r-{n}.sock").exists() for n in (0, 1)))
        reply = {"state": "ready", "version": "1-a", "generation": 0}
        reply |= {"reload": "load", "reload_to": "2-b"}
        replies = {"r-0": reply, "r-1": reply}
        assert await running.ask("POST", "/models/m/reload") == (
            200,
            {"model": "m", "replicas": replies},
        )
        status, body = await running.ask("POST", "/models/m/rollback")
        assert status == 409 and body["code"] == "no_version"
        assert body["error"] == "no replica follows a channel that has a version"


TWO = """
[[models]]
name = "m"
[[models.replicas]]
name = "a"
spawn = "a.toml"
[[models.replicas]]
name = "b"
spawn = "b.toml"
"""


async def test_all_go_back_from_the_newest_that_one_has_seen(tmp_path):
    tmp_path.joinpath("a.toml").write_text("ready 1-a 2-b 3-c\n")
    tmp_path.joinpath("b.toml").write_text("ready 1-a 2-b\n")
    async with admin(tmp_path, config=TWO) as running:
        ask, path = running.ask, "/models/m/rollback"

        def went(body):
            return body["from"], {n: r["version"] for n, r in body["replicas"].items()}

        # Two operators at once mean the same version.
        both = await asyncio.gather(ask("POST", path), ask("POST", path))
        assert [status for status, _ in both] == [200, 200]
        assert went(both[0][1]) == ("3-c", {"a": "2-b", "b": "2-b"})
        refused = (await running.status())["models"][0]["rollout"]["refused"]
        assert refused == {"3-c": "rolled back by an operator"}
        status, body = await ask("POST", path, json={"version": "2"})
        assert went(body) == ("2-b", {"a": "1-a", "b": "1-a"})
        status, body = await ask("POST", path)
        assert (status, body["error"]) == (
            409,
            "rollback failed on a: nothing to go back to; b: nothing to go back to",
        )
        for sent, said in (
            ({"json": {"version": "9"}}, "known: 1-a"),
            ({"json": {"version": 2}}, '{"version": "NAME"}'),
            ({"json": {"step": "2"}}, '{"version": "NAME"}'),
            ({"data": "{"}, "not JSON"),
        ):
            status, body = await ask("POST", path, **sent)
            assert status in (400, 409) and said in body["error"]


async def test_who_is_away_at_a_rollback_is_told_when_it_comes(tmp_path):
    tmp_path.joinpath("a.toml").write_text("ready 1-a 2-b\n")
    tmp_path.joinpath("b.toml").write_text("ready 1-a 2-b\n")
    async with admin(tmp_path, config=TWO) as running:
        replicas = running.supervisor.replicas
        tmp_path.joinpath("b.toml").write_text("die for now\n")
        os.kill(replicas["b"].child.pid, signal.SIGKILL)
        await until(lambda: replicas["b"].child.restarts)
        status, body = await running.ask("POST", "/models/m/rollback")
        assert (status, body["from"], body["replicas"]["a"]["version"]) == (200, "2-b", "1-a")
        assert "cannot reach" in body["replicas"]["b"]["error"]
        tmp_path.joinpath("b.toml").write_text("ready 1-a 2-b\n")

        async def told():
            events = (await running.ask("GET", "/events"))[1]["events"]
            return any((e["name"], e["text"]) == ("b", "goes back from 2-b") for e in events)

        await until(told)


STATIC = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\n'


async def test_only_what_a_canary_tries_can_be_promoted(tmp_path):
    async with admin(tmp_path) as running:
        status, body = await running.ask("POST", "/models/m/promote")
        assert status == 409 and "models.canary.channel" in body["error"]
        assert (await running.ask("POST", "/models/none/promote"))[0] == 404
    canary = MODEL + '[models.canary]\nchannel = "canary"\n'
    async with admin(tmp_path, config=canary) as running:
        status, body = await running.ask("POST", "/models/m/promote")
        assert status == 409 and "tries nothing" in body["error"]
        status = await running.status()
        assert status["models"][0]["rollout"]["canary"]["trying"] == ""


async def test_what_cannot_be_asked_of_a_replica_is_said(tmp_path):
    http = STATIC + 'kind = "http"\naddress = "http://127.0.0.1:1"\n'
    async with admin(tmp_path, config=http) as running:
        status, body = await running.ask("POST", "/models/m/reload")
        assert status == 409 and "no native replica to reload" in body["error"]
    async with admin(tmp_path, config=STATIC + 'address = "tcp:127.0.0.1:1"\n') as running:
        status, body = await running.ask("POST", "/models/m/reload")
        assert status == 503 and "cannot reach the replica at tcp:127.0.0.1:1" in body["error"]


WRONG = [
    ("GET", "/nothing", {}, 404, "GET /nothing: Not Found"),
    ("GET", "/replicas/r-0/drain", {}, 405, "Method Not Allowed"),
    ("POST", "/replicas/x/drain", {}, 404, "there is no replica 'x'; known: r-0, r-1"),
    ("POST", "/models/x/reload", {}, 404, "there is no model 'x'; known: m"),
    ("POST", "/replicas/r-0/weight", {"data": b"{"}, 400, "the body is not JSON"),
    ("POST", "/replicas/r-0/weight", {"json": {"w": 1}}, 400, 'must be {"weight": NUMBER}'),
    ("POST", "/replicas/r-0/weight", {"json": {"weight": True}}, 400, "must be"),
    (
        "POST",
        "/replicas/r-0/weight",
        {"json": {"weight": -1}},
        400,
        "from 0 to 1000000, got -1",
    ),
    ("GET", "/events?after=x", {}, 400, "after: expected the id of an event, got 'x'"),
    ("POST", "/replicas/r-0/drain", {"headers": {"origin": "http://x"}}, 403, "not from a web"),
]


async def test_errors_are_json_and_name_what_is_wrong(tmp_path):
    async with admin(tmp_path) as running:
        for method, path, more, status, message in WRONG:
            found, body = await running.ask(method, path, **more)
            assert found == status and message in body["error"], path


async def test_with_a_key_only_who_has_it_may_ask(tmp_path):
    async with admin(tmp_path, server=f'admin_key = "{KEY}"\n') as running:
        assert (await running.ask("GET", "/healthz"))[0] == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            status, body = await running.ask("GET", "/status", headers=headers)
            assert status == 401 and body["code"] == "unauthorized"
        good = {"authorization": f"Bearer {KEY}"}
        assert (await running.ask("GET", "/status", headers=good))[0] == 200
        assert (await running.ask("POST", "/replicas/r-0/drain", headers=good))[0] == 200
