"""Keys at the door: who gets in, to what, and what the others are told in each surface's form."""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import asynccontextmanager

import orjson
import pytest
from aiohttp import ClientSession, web

from gateway.admit import Admittance
from gateway.auth import Gate
from gateway.config import GatewayConfig, parse
from gateway.http_fleet import HttpFleet
from gateway.lane import Lane, RequestHead
from gateway.lane.framing import read_framing
from gateway.oip import OipSurface
from gateway.tenants import Tenants
from gateway.ws import WebSocketSurface
from tests.gateway.oip.fakes import FakeDirectory, FakeModel, FakeSwitchable
from tests.gateway.relay.fakes import Upstream

KEYS = {"app": "key-of-app-000000", "boss": "key-of-boss-00000", "narrow": "key-of-narrow-000"}
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def table(name: str, more: str = "") -> str:
    return f'[[keys]]\nname = "{name}"\nkey_sha256 = ["{digest(KEYS[name])}"]\n{more}\n'


ALL = table("app") + table("boss", "manage = true") + table("narrow", 'models = ["simple"]')
MODELS = """
[[models]]
name = "simple"
[[models.replicas]]
name = "s"
address = "tcp:127.0.0.1:1"
[[models]]
name = "chat"
[models.relay]
key_env = "CHAT_KEY"
[[models.replicas]]
name = "c"
kind = "http"
address = "http://127.0.0.1:PORT"
[[models]]
name = "site"
relay = { api = "web" }
[[models.replicas]]
name = "w"
kind = "http"
address = "http://127.0.0.1:PORT"
[[routes]]
path = "/site"
model = "site"
public = true
[[routes]]
path = "/inner"
model = "site"
"""


class House:
    def __init__(self, url, admit, lane, upstream, model, configure):
        self.url, self.admit, self.lane, self.upstream = url, admit, lane, upstream
        self.model, self.configure = model, configure

    async def ask(self, path, key=None, body=None, method=None, header="authorization"):
        headers = {}
        if key is not None:
            headers[header] = f"Bearer {key}" if header == "authorization" else key
        method = method or ("GET" if body is None else "POST")
        data = None if body is None else orjson.dumps(body)
        async with (
            ClientSession() as session,
            session.request(method, self.url + path, headers=headers, data=data) as answer,
        ):
            text = await answer.read()
            return answer.status, orjson.loads(text) if text[:1] == b"{" else text, answer.headers


@asynccontextmanager
async def house(tmp_path, keys=ALL):
    loop = asyncio.get_running_loop()
    upstream = Upstream("u")
    await upstream.start()

    def config(keys: str) -> GatewayConfig:
        text = MODELS.replace("PORT", str(upstream.port)) + keys
        return parse(text, tmp_path / "serve.toml", {})

    fleet = HttpFleet(tmp_path, loop=loop, rng=random.Random(0))
    fleet.apply(config(keys))
    model = FakeSwitchable()
    directory = FakeDirectory(model, FakeModel("other"))
    surface, sockets = OipSurface(directory), WebSocketSurface(directory)

    def resolve(method: str, path: str):
        return (
            fleet.surface.resolve(method, path)
            or surface.resolve(method, path)
            or sockets.resolve(method, path)
        )

    async def page(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"page {request.path}")

    pages = web.Server(page)
    lane = Lane(resolve, pages)
    admit = Admittance(Tenants(loop.time), fleet.surface)

    def configure(keys: str) -> None:
        fleet.apply(config(keys))
        admit.apply(config(keys), lane)

    configure(keys)
    await fleet.met()
    server = await loop.create_server(lane.protocol, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield House(url, admit, lane, upstream, model, configure)
    finally:
        server.close()
        await lane.drain(1)
        sockets.close()
        await pages.shutdown(1)
        await fleet.close()
        await upstream.stop()


async def test_without_keys_everybody_is_let_in(tmp_path):
    async with house(tmp_path, keys="") as at:
        assert at.lane.guard is None
        assert (await at.ask("/v2/models/simple/infer", body=BODY))[0] == 200
        assert (await at.ask("/v2/repository/models/simple/unload", body={}))[0] == 200


async def test_each_surface_refuses_in_its_own_words(tmp_path):
    async with house(tmp_path) as at:
        for key in (None, "wrong"):
            status, said, headers = await at.ask("/v2/models/simple/infer", key, BODY)
            assert status == 401 and "key" in said["error"]
            assert headers["www-authenticate"].startswith("Bearer")
            status, said, _ = await at.ask("/v1/chat/completions", key, {"model": "chat"})
            assert status == 401 and said["error"]["type"] == "authentication_error"
            assert (await at.ask("/inner/x", key))[0] == 401
            assert (await at.ask("/metrics", key))[0] == 401
        assert at.upstream.calls == [] and at.model.submitted == []


@pytest.mark.parametrize("header", ["authorization", "api-key", "x-api-key"])
async def test_a_key_lets_its_tenant_in(tmp_path, header):
    async with house(tmp_path) as at:
        key = KEYS["app"]
        answer = await at.ask("/v2/models/simple/infer", key, BODY, header=header)
        assert answer[0] == 200
        assert at.model.submitted[0].tenant == "app"
        assert (await at.ask("/metrics", key, header=header))[1] == b"page /metrics"
        assert (await at.ask("/v1/chat/completions", key, {"model": "chat"}, header=header))[
            0
        ] == 200
        tenant = at.admit.tenants["app"]
        assert (tenant.admitted, tenant.live) == (2, 0)


async def test_what_is_open_to_all_needs_none(tmp_path):
    async with house(tmp_path) as at:
        assert (await at.ask("/healthz"))[1] == b"page /healthz"
        assert (await at.ask("/static/dashboard.js"))[0] == 200
        assert (await at.ask("/static/%2e%2e/status.json"))[0] == 401
        assert (await at.ask("/v2/health/live"))[0] == 200
        assert (await at.ask("/site/page"))[1] == b"u"


async def test_the_key_of_the_gateway_stays_here(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_KEY", "the-replica's")
    async with house(tmp_path) as at:
        await at.ask("/inner/x", KEYS["app"])
        assert at.upstream.calls[-1].header("authorization") is None
        await at.ask("/site/x", "of the site itself")
        assert at.upstream.calls[-1].header("authorization") == "Bearer of the site itself"
        await at.ask("/v1/chat/completions", KEYS["app"], {"model": "chat"})
        assert at.upstream.calls[-1].header("authorization") == "Bearer the-replica's"


async def test_a_key_opens_only_its_models(tmp_path):
    async with house(tmp_path) as at:
        key = KEYS["narrow"]
        assert (await at.ask("/v2/models/simple/infer", key, BODY))[0] == 200
        assert (await at.ask("/v2/models/other/infer", key, BODY))[0] == 403
        assert (await at.ask("/v2/models/other/config", key))[0] == 403
        status, said, _ = await at.ask("/v1/chat/completions", key, {"model": "chat"})
        assert status == 403 and said["error"]["type"] == "permission_error"
        assert (await at.ask("/v1/models", key))[1]["data"] == []
        assert [m["id"] for m in (await at.ask("/v1/models", KEYS["app"]))[1]["data"]] == ["chat"]
        index = (await at.ask("/v2/repository/index", key, {}))[1]
        assert b"simple" in index and b"other" not in index


async def test_only_a_key_that_may_manage_changes_what_is_served(tmp_path):
    async with house(tmp_path) as at:
        for name, status in (("app", 403), ("boss", 200)):
            for verb in ("unload", "load"):
                path = f"/v2/repository/models/simple/{verb}"
                assert (await at.ask(path, KEYS[name], {}))[0] == status


async def test_another_configuration_counts_at_once_on_open_connections(tmp_path):
    async with house(tmp_path) as at, ClientSession() as session:
        headers = {"authorization": f"Bearer {KEYS['app']}"}

        async def ask():
            async with session.post(
                at.url + "/v2/models/simple/infer", json=BODY, headers=headers
            ) as answer:
                return answer.status

        assert [await ask(), await ask(), await ask()] == [200] * 3
        at.configure(table("boss"))
        assert [await ask(), await ask()] == [401] * 2
        at.configure(ALL)
        assert await ask() == 200
        assert at.admit.tenants["app"].admitted == 1  # it was gone; its account began anew


async def test_no_body_is_read_for_who_is_not_let_in(tmp_path):
    async with house(tmp_path) as at:
        port = int(at.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            "POST /v2/models/simple/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 60000000\r\n\r\n"
        )
        writer.write(head.encode())
        assert (await reader.readline()).split()[1] == b"401"
        assert at.lane.gathered == 0
        writer.close()


async def test_a_pages_websocket_offers_its_key_as_a_subprotocol(tmp_path):
    async with house(tmp_path) as at, ClientSession() as session:
        offered = ("penstock.v1", f"bearer.{KEYS['app']}")
        async with session.ws_connect(at.url + "/ws", protocols=offered) as socket:
            assert socket.protocol == "penstock.v1"
            for number in range(3):
                await socket.send_json(
                    {"type": "infer", "id": str(number), "model_name": "simple", **BODY}
                )
                assert (await socket.receive_json())["type"] == "result"
        tenant = at.admit.tenants["app"]
        assert (tenant.admitted, tenant.live) == (3, 0)


async def test_a_sockets_requests_are_each_admitted(tmp_path):
    limited = table("app", "concurrency = 1") + table("narrow", 'models = ["simple"]')
    async with house(tmp_path, keys=limited) as at, ClientSession() as session:
        at.model.held = True
        headers = {"x-api-key": KEYS["app"]}
        async with session.ws_connect(at.url + "/ws", headers=headers) as socket:
            for name in ("a", "b"):
                await socket.send_json(
                    {"type": "infer", "id": name, "model_name": "simple", **BODY}
                )
            refused = await socket.receive_json()
            assert (refused["id"], refused["status"]) == ("b", 429)
            assert refused["code"] == "rate_limit_exceeded"
            await socket.send_json({"type": "infer", "id": "b", "model_name": "nothing", **BODY})
            assert (await socket.receive_json())["status"] == 404
        await asyncio.sleep(0.01)  # the server hears of the close
        assert at.admit.tenants["app"].live == 0


def test_a_head_is_looked_at_once_for_each_configuration(tmp_path):
    looked = []
    config = parse(MODELS.replace("PORT", "1") + ALL, tmp_path / "serve.toml", {})
    tenants = Tenants(lambda: 0.0)
    tenants.apply(config.keys, 1)

    def route(path, host):
        looked.append(path)
        return None

    gate = Gate(tenants, route=route, openai=lambda path, host: False)
    gate.apply(config.keys)
    head = RequestHead(
        "GET", "/x", "", [(b"x-api-key", KEYS["app"].encode())], read_framing(0, False, [], 100)
    )
    assert gate(head, None) is None and gate(head, None) is None
    assert looked == ["/x"] and head.tenant is tenants["app"]
    gate.apply(config.keys)
    gate(head, None)
    assert looked == ["/x", "/x"]
