"""TLS on the way in and to replicas: who is trusted, who is not, and new certificates."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import ssl
from contextlib import asynccontextmanager
from types import SimpleNamespace

import openai
import orjson
import pytest
import requests
from aiohttp import ClientError, ClientSession, TCPConnector, web
from websockets.asyncio.client import connect

from gateway.config import ConfigError, parse
from gateway.config_tls import ListenTls
from gateway.entrance import Entrance
from gateway.http_fleet import HttpFleet
from gateway.lane import Lane
from gateway.oip import OipSurface
from gateway.tls import BadCertificate, for_listener
from gateway.ws import WebSocketSurface
from tests.gateway.certificates import Authority
from tests.gateway.fakes import until
from tests.gateway.oip.fakes import FakeDirectory, FakeModel
from tests.gateway.relay.fakes import Upstream

HOST = "127.0.0.1"
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


def trusting(ca, pair=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca.pem))
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


@asynccontextmanager
async def listening(tls: ListenTls, relay: HttpFleet | None = None):
    """A lane with all its surfaces behind an entrance."""
    directory = FakeDirectory(FakeModel())
    surface, sockets = OipSurface(directory), WebSocketSurface(directory)

    def resolve(method, path):
        found = relay.surface.resolve(method, path) if relay is not None else None
        return found or surface.resolve(method, path) or sockets.resolve(method, path)

    async def page(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"page {request.path}")

    pages = web.Server(page)
    lane = Lane(resolve, pages)
    bound = socket.create_server((HOST, 0))
    entrance = Entrance(bound, lane.protocol, tls)
    await entrance.open()
    port = bound.getsockname()[1]
    try:
        yield SimpleNamespace(
            port=port, at=f"{HOST}:{port}", entrance=entrance, lane=lane, bound=bound
        )
    finally:
        entrance.close()
        await lane.drain(1)
        sockets.close()
        await pages.shutdown(1)


@asynccontextmanager
async def relaying_to(server_tls: ssl.SSLContext | None, relay_tls: str, tmp_path, wait=True):
    """A fleet over one upstream that speaks TLS; the model is `m` of /v1."""
    upstream = Upstream("u")
    upstream._server = await asyncio.start_server(upstream._serve, HOST, 0, ssl=server_tls)
    upstream.port = upstream._server.sockets[0].getsockname()[1]
    text = (
        f'[[models]]\nname = "m"\n[models.relay]\n[models.relay.tls]\n{relay_tls}\n'
        f'[[models.replicas]]\nname = "u"\nkind = "http"\n'
        f'address = "https://localhost:{upstream.port}"\nhealth_s = 0.05\n'
    )
    fleet = HttpFleet(tmp_path, loop=asyncio.get_running_loop(), rng=random.Random(0))
    try:
        fleet.apply(parse(text, tmp_path / "serve.toml", {}))
        await fleet.met()
        yield fleet, upstream
    finally:
        await fleet.close()
        await upstream.stop()


async def test_real_clients_reach_every_surface_over_tls(ca, tmp_path):
    cert, key = ca.issue("server", HOST, "localhost")
    inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inner.load_cert_chain(cert, key)
    async with (
        relaying_to(inner, f'ca = "{ca.pem}"', tmp_path) as (fleet, upstream),
        listening(ListenTls(cert=cert, key=key), fleet) as at,
    ):
        url = f"https://{at.at}"

        def ask():
            with requests.Session() as session:
                session.verify, session.trust_env = str(ca.pem), False
                answers = [
                    session.get(f"{url}/v2/health/live"),
                    session.get(f"{url}/metrics"),
                    session.post(f"{url}/v2/models/simple/infer", json=BODY),
                ]
                return [answer.status_code for answer in answers], answers[1].text

        assert await asyncio.to_thread(ask) == ([200, 200, 200], "page /metrics")
        assert at.lane.stats.accepted == 1  # on one connection, aiohttp's page included
        async with connect(f"wss://{at.at}/ws", ssl=trusting(ca)) as client:
            document = {"type": "infer", "id": "1", "model_name": "simple", **BODY}
            await client.send(orjson.dumps(document), text=True)
            assert orjson.loads(await client.recv())["type"] == "result"
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            http_client=openai.DefaultAsyncHttpxClient(verify=trusting(ca)),
        ) as client:
            assert [model.id async for model in client.models.list()] == ["m"]
            upstream.script = lambda call: call.answer(b'{"id": "x", "choices": []}')
            made = await client.chat.completions.create(model="m", messages=[])
            assert made.id == "x"
        forwarded = upstream.calls[-1]
        assert forwarded.header("x-forwarded-proto") == "https"


async def test_who_does_not_trust_us_or_speaks_plain_http_gets_nothing(ca, tmp_path):
    cert, key = ca.issue("server", HOST)
    async with listening(ListenTls(cert=cert, key=key)) as at, ClientSession() as session:
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            await session.get(f"https://{at.at}/v2/health/live")
        with pytest.raises(Exception, match=r"disconnect|reset|Expected HTTP"):
            await session.get(f"http://{at.at}/v2/health/live")
        assert at.lane.stats.requests == 0


async def test_clients_show_a_certificate_where_one_is_asked_for(ca, tmp_path):
    cert, key = ca.issue("server", HOST)
    other = Authority(tmp_path, "other")
    tls = ListenTls(cert=cert, key=key, client_ca=ca.pem)

    async def ask(pair):
        connector = TCPConnector(ssl=trusting(ca, pair))
        async with (
            ClientSession(connector=connector) as session,
            session.get(f"https://{at.at}/v2/health/live") as answer,
        ):
            return answer.status

    async with listening(tls) as at:
        assert await ask(ca.issue("client")) == 200
        for stranger in (None, other.issue("stranger")):
            with pytest.raises(ClientError):
                await ask(stranger)
        assert at.lane.stats.requests == 1


async def test_new_certificates_are_used_and_open_connections_go_on(ca, tmp_path):
    own = Authority(tmp_path, "own")
    cert, key = own.issue("renewed", HOST)
    connections = []

    async def open_one():
        reader, writer = await asyncio.open_connection(
            HOST, at.port, ssl=trusting(own), server_hostname=HOST
        )
        connections.append(writer)
        return reader, writer, writer.get_extra_info("peercert")["serialNumber"]

    async def ask(reader, writer):
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nhost: h\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b'{"live":true}'))
        return head.split()[1]

    async with listening(ListenTls(cert=cert, key=key)) as at:
        reader, writer, first = await open_one()
        assert await ask(reader, writer) == b"200"
        own.issue("renewed", HOST)
        await at.entrance.renew()
        *second, serial = await open_one()
        assert serial != first
        assert await ask(*second) == await ask(reader, writer) == b"200"
        key.write_text("nonsense")
        with pytest.raises(BadCertificate):
            await at.entrance.renew()
        # A server on a socket that blocks would stop this loop until the next client comes.
        assert not os.get_blocking(at.bound.fileno())
        *third, same = await open_one()
        assert same == serial and await ask(*third) == b"200"
        for each in connections:
            each.close()


async def test_replicas_are_verified_and_shown_our_certificate(ca, tmp_path):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ca.pem))
    server.load_cert_chain(*ca.issue("replica", "localhost"))
    server.verify_mode = ssl.CERT_REQUIRED
    cert, key = ca.issue("gateway")
    good = f'ca = "{ca.pem}"\ncert = "{cert}"\nkey = "{key}"'
    async with relaying_to(server, good, tmp_path) as (fleet, _):
        assert fleet.pools()[0].ready
    async with relaying_to(server, f'ca = "{ca.pem}"', tmp_path) as (fleet, upstream):
        # TLS 1.3 lets us connect before it tells us that it wanted a certificate.
        upstream.script = lambda call: call.answer(b"never")
        await asyncio.sleep(0)
        assert upstream.calls == []


@pytest.mark.parametrize(
    ("tls", "ready"),
    [
        ('ca = "{ca}"', True),
        ("", False),
        ("verify = false", True),
        ('ca = "{ca}"\nserver_name = "elsewhere"', False),
    ],
)
async def test_only_a_replica_that_can_be_trusted_is_used(ca, tmp_path, tls, ready):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*ca.issue("replica", "localhost"))
    tls = tls.format(ca=ca.pem)
    async with relaying_to(server, tls, tmp_path) as (fleet, _):
        pool = fleet.pools()[0]
        assert pool.ready is ready
        assert ready or "CERTIFICATE_VERIFY_FAILED" in pool.reason() or "mismatch" in pool.reason()


async def test_replaced_trust_makes_replicas_anew(ca, tmp_path):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*ca.issue("replica", "localhost"))
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Authority(tmp_path, "wrong").pem.read_bytes())
    async with relaying_to(server, f'ca = "{trusted}"', tmp_path) as (fleet, upstream):
        pool = fleet.pools()[0]
        assert not pool.ready
        trusted.write_bytes(ca.pem.read_bytes())
        text = (
            f'[[models]]\nname = "m"\n[models.relay.tls]\nca = "{trusted}"\n'
            f'[[models.replicas]]\nname = "u"\nkind = "http"\n'
            f'address = "https://localhost:{upstream.port}"\nhealth_s = 0.05\n'
        )
        fleet.apply(parse(text, tmp_path / "serve.toml", {}))
        await until(lambda: pool.ready)


def config(server: str, relay: str = "") -> str:
    address = "https://h:1" if relay else "http://h:1"
    return (
        f'[server]\n{server}\n[[models]]\nname = "m"\n[models.relay]\n{relay}\n'
        f'[[models.replicas]]\nname = "r"\nkind = "http"\naddress = "{address}"\n'
    )


def test_wrong_files_are_named_with_their_line(ca, tmp_path):
    cert, key = ca.issue("good", HOST)
    _, other_key = ca.issue("other", HOST)
    locked = ca.issue("locked", HOST, passphrase=b"secret")
    text = tmp_path / "not.pem"
    text.write_text("this is no certificate")
    for server, relay, said in (
        (f'tls = {{ cert = "{cert}" }}', "", "tls.key: a certificate needs both"),
        (f'tls = {{ client_ca = "{ca.pem}" }}', "", "needs a certificate of our own"),
        (f'tls = {{ cert = "{cert}", key = "{other_key}" }}', "", "is not the key of the"),
        (f'tls = {{ cert = "{text}", key = "{key}" }}', "", "tls.cert: cert and key must be PEM"),
        (f'tls = {{ cert = "{locked[0]}", key = "{locked[1]}" }}', "", "without a passphrase"),
        (
            f'admin_tls = {{ cert = "{cert}", key = "{key}", client_ca = "{text}" }}',
            "",
            "admin_tls.client_ca: expected certificates in PEM",
        ),
        ('tls = { cert = "/nowhere.pem", key = "/nowhere.key" }', "", "there is no file"),
        ("", f'tls = {{ ca = "{text}" }}', "relay.tls.ca: expected certificates in PEM"),
        ("", f'tls = {{ ca = "{ca.pem}", verify = false }}', "nothing is checked against"),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(config(server, relay), tmp_path / "serve.toml", {}, check_files=True)
        assert said in str(caught.value), str(caught.value)
    good = f'tls = {{ cert = "{cert}", key = "{key}" }}'
    assert parse(config(good), tmp_path / "serve.toml", {}, check_files=True).server.tls.used


def test_tls_is_of_https_addresses_and_the_wire_has_none(ca, tmp_path):
    text = config("", f'tls = {{ ca = "{ca.pem}" }}').replace("https://h:1", "http://h:1")
    with pytest.raises(ConfigError, match="https addresses; none has one"):
        parse(text, tmp_path / "serve.toml", {})
    native = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\naddress = "tls:h:1"\n'
    with pytest.raises(ConfigError, match="the wire to native replicas knows no TLS"):
        parse(native, tmp_path / "serve.toml", {})


def test_old_versions_of_tls_are_not_spoken(ca):
    cert, key = ca.issue("server", HOST)
    assert for_listener(ListenTls(cert=cert, key=key)).minimum_version == ssl.TLSVersion.TLSv1_2
