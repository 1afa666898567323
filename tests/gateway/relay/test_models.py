"""/v1 by a model's name: who is asked, what is listed, how bodies are looked into."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import RouteConfig
from gateway.relay.routes import RouteTable
from gateway.relay.scan import FieldScan, fields_of, form_model
from tests.gateway.relay.fakes import Upstream, relaying, replica, until

NAMES = 'api = "openai"\nnames = ["org/Big-7B", "small"]\n'


async def echo(call):
    await call.answer(call.upstream.name.encode() + b":" + call.body)


def second(upstream: Upstream) -> str:
    return '[[models]]\nname = "other"\n' + replica("o", upstream.port)


@pytest.mark.parametrize("size", [0, 20_000, 400_000])
async def test_the_bodys_model_picks_the_pool_and_the_body_stays_as_it_is(size):
    other = Upstream("o", echo)
    await other.start()
    async with relaying(Upstream("a", echo), relay=NAMES, routes=second(other)) as gateway:
        for model, who in (("org/Big-7B", b"a"), ("small", b"a"), ("other", b"o")):
            text = "x" * size
            for body in (
                f'{{ "messages" : ["{text}", {{"model": "no"}}],\n "model":"{model}", "n":1}}',
                f'{{"model": "{model}", "messages": "{text}\\" \\"model\\":1"}}',
            ):
                reply = await gateway.ask("/v1/chat/completions", method="POST", body=body.encode())
                assert reply.body == who + b":" + body.encode()
    await other.stop()


async def test_unknown_and_missing_models_are_refused_in_openais_form():
    other = Upstream("o", echo)
    await other.start()
    async with relaying(Upstream("a", echo), relay=NAMES, routes=second(other)) as gateway:
        for body, status, code in (
            (b'{"model":"nope"}', 404, "model_not_found"),
            (b"{}", 400, "invalid_request"),
            (b"no json", 400, "invalid_request"),
            (b'{"model":7}', 400, "invalid_request"),
            (b'{"messages":"' + b"x" * 300_000 + b'"}', 400, "invalid_request"),
        ):
            reply = await gateway.ask("/v1/completions", method="POST", body=body)
            error = orjson.loads(reply.body)["error"]
            assert (reply.status, error["code"], error["param"]) == (status, code, "model")
            assert error["type"] == "invalid_request_error"
        assert (await gateway.ask("/v1/files")).status == 400
        reply = await gateway.ask(
            "/v1/completions", method="POST", body=b"x", fields="content-encoding: gzip\r\n"
        )
        assert reply.status == 501
    await other.stop()


async def test_with_one_model_requests_need_not_name_it():
    async with relaying(Upstream("a", lambda call: call.answer(b"ok")), relay=NAMES) as gateway:
        assert (await gateway.ask("/v1/files")).body == b"ok"
        assert (await gateway.ask("/v1/batches", method="POST", body=b"{}")).body == b"ok"


async def test_forms_name_their_model_in_a_field():
    other = Upstream("o", echo)
    await other.start()
    async with relaying(Upstream("a", echo), relay=NAMES, routes=second(other)) as gateway:
        body = (
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n\x00\r\n'
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n--b--\r\n'
        )
        kind = "content-type: multipart/form-data; boundary=b\r\n"
        path = "/v1/audio/transcriptions"
        reply = await gateway.ask(path, method="POST", body=body, fields=kind)
        assert reply.body == b"o:" + body
    await other.stop()


async def test_models_are_listed_by_their_names():
    async with relaying(Upstream("a"), relay=NAMES, routes="") as gateway:
        listed = orjson.loads((await gateway.ask("/v1/models")).body)
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["org/Big-7B", "small"]
        one = orjson.loads((await gateway.ask("/v1/models/org%2FBig-7B")).body)
        assert one["id"] == "org/Big-7B" and one["object"] == "model"
        assert (await gateway.ask("/v1/models/none")).status == 404
        assert (await gateway.ask("/v1/models", method="POST", body=b"")).status == 405


async def test_web_applications_are_no_models():
    async with relaying(Upstream("a"), relay='api = "web"', routes="") as gateway:
        assert (await gateway.ask("/v1/models")).status == 404


async def test_intakes_of_one_worker_are_bounded_together():
    async with relaying(Upstream("a"), relay=NAMES) as gateway:
        held = gateway.fleet.surface.held
        held.limit = 1000
        client = await gateway.connect()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"
        client.transport.write(head + b'{"prompt": "' + b"x" * 2000)
        await until(lambda: client.reply.complete)
        assert client.reply.status == 503 and client.reply.header("retry-after") == "1"
        assert held.bytes == 0


LEAF = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8))
KEYS = st.sampled_from(["model", "user", "messages", 'a"b', "mo\\del", "x"])
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(st.dictionaries(KEYS, JSON, max_size=6), st.lists(st.integers(1, 30), min_size=1))
def test_a_scan_finds_what_a_parser_would(document, cuts):
    raw = orjson.dumps(document)
    scan, at, turn = FieldScan(("model", "user")), 0, 0
    while at < len(raw):
        size = cuts[turn % len(cuts)]
        scan.feed(raw[at : at + size])
        at, turn = at + size, turn + 1
    names, found = ("model", "user"), (str, int)
    wanted = {k: v for k, v in document.items() if k in names and isinstance(v, found)}
    assert scan.found == wanted
    assert scan.done


@given(st.binary(max_size=200), st.lists(st.integers(1, 30), min_size=1))
def test_a_scan_takes_any_bytes(raw, cuts):
    scan, at, turn = FieldScan(("model",)), 0, 0
    while at < len(raw):
        size = cuts[turn % len(cuts)]
        scan.feed(raw[at : at + size])
        at, turn = at + size, turn + 1
    assert set(scan.found) <= {"model"}
    assert fields_of(raw, ("model",)) in ({}, fields_of(raw, ("model",)))
    assert form_model(raw) is None or b"model" in raw


ROUTES = ["/", "/a", "/a/b", "/ab"]


@given(st.sampled_from(["/", "/a", "/a/", "/a/b", "/a/bc", "/ab/c", "/abc", "/x/a"]))
def test_the_longest_route_that_a_path_lies_below_wins(path):
    table = RouteTable([(RouteConfig(path=route, model="m"), route) for route in ROUTES])
    words = path.rstrip("/").split("/")
    below = [r for r in ROUTES if r == "/" or words[: r.count("/") + 1] == r.split("/")]
    assert table.find(path, None) == max(below, key=len)
    assert table.covers(path)


@pytest.mark.parametrize(
    "path, covered",
    [("/", True), ("/x", True), ("/v1/models", False), ("/v2/own", True), ("/v2/own/x", True),
     ("/v2/other", False), ("/metrics", False), ("/healthz", False), ("/static/x", True)],
)  # fmt: skip
def test_the_gateways_own_paths_are_nearer_than_a_route_to_everything(path, covered):
    routes = [RouteConfig(path=path, model="m") for path in ("/", "/v2/own")]
    assert RouteTable([(route, route.path) for route in routes]).covers(path) is covered


def test_a_routes_host_wins_over_none():
    routes = [RouteConfig(path="/", host=host, model="m") for host in (None, "A.example", "[::1]")]
    table = RouteTable([(route, route.host) for route in routes])
    assert table.find("/x", b"a.EXAMPLE:8080") == "A.example"
    assert table.find("/x", b"[::1]:80") == "[::1]"
    assert table.find("/x", b"b.example") is None
