"""Http replicas coming and going: by configuration, by name, by health, by the operator."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from pathlib import Path

import pytest

from gateway import dns
from gateway.config import ReplicaConfig, parse
from gateway.http_address import address_of, command_for
from gateway.http_fleet import HttpFleet
from gateway.overview import overview
from gateway.relay.endpoint import Endpoint
from tests.gateway.relay.fakes import Upstream, relaying, replica, until

PATH = Path("/srv/serve.toml")


def config(*upstreams, more=""):
    text = '[[models]]\nname = "m"\n[models.relay]\napi = "web"\n'
    text += "".join(replica(upstream.name, upstream.port) for upstream in upstreams)
    return parse(text + '[[routes]]\npath = "/"\nmodel = "m"\n' + more, PATH, {})


async def test_a_new_configuration_changes_what_it_must_and_cuts_nothing():
    go = asyncio.Event()

    async def script(call):
        if call.target == "/slow":
            await go.wait()
        await call.answer(call.upstream.name.encode())

    first, second = Upstream("a", script), Upstream("b", script)
    await second.start()
    async with relaying(first) as gateway:
        slow = await gateway.ask("/slow", complete=False)
        await until(lambda: first.calls)
        gateway.fleet.apply(config(first, second))
        kept = gateway.pool.replicas[0]
        await until(lambda: all(each.ready for each in gateway.pool.replicas))
        gateway.fleet.apply(config(second))
        assert [each.name for each in gateway.pool.replicas] == ["b"]
        assert kept.state == "draining" and kept.load.in_flight == 1
        assert {(await gateway.ask(f"/{n}")).body for n in range(6)} == {b"b"}
        go.set()
        await until(lambda: slow.complete)
        assert slow.body == b"a" and kept.load.in_flight == 0
        gateway.fleet.apply(config(second, more='[[routes]]\npath = "/x"\nmodel = "m"\n'))
        assert [each.name for each in gateway.pool.replicas] == ["b"]
    await second.stop()


async def test_a_model_that_goes_ends_its_requests():
    async def script(call):
        await call.reader.read(1)

    upstream = Upstream("a", script)
    async with relaying(upstream) as gateway:
        pool = gateway.pool
        reply = await gateway.ask(complete=False)
        await until(lambda: upstream.calls)
        other = '[[models]]\nname = "o"\n' + replica("o", upstream.port)
        gateway.fleet.apply(parse(other, PATH, {}))
        await until(lambda: reply.complete)
        assert reply.status == 404
        assert pool.status()["counters"]["failed"] == 1 and pool.replicas == []
        assert (await gateway.ask()).status == 404


async def test_every_address_of_a_name_is_a_replica(monkeypatch):
    found = ["127.0.0.1", "127.0.0.2"]

    async def addresses_of(loop, host, port):
        assert host == "shop.internal"
        if not found:
            raise OSError("no such host")
        return list(found)

    monkeypatch.setattr(dns, "addresses_of", addresses_of)
    upstream = Upstream("a")
    await upstream.start()
    named = f"""
[[models]]
name = "m"
[models.relay]
api = "web"
[[models.replicas]]
name = "up"
kind = "http"
address = "http://shop.internal:{upstream.port}"
discover = "dns"
discover_s = 0.01
health_s = 0.05
[[routes]]
path = "/"
model = "m"
"""
    parsed = parse(named, PATH, {})
    async with relaying(Upstream("b")) as gateway:
        gateway.fleet.apply(parsed)
        names = lambda: [each.name for each in gateway.pool.replicas]  # noqa: E731
        await until(lambda: names() == ["up@127.0.0.1", "up@127.0.0.2"])
        await until(lambda: gateway.pool.ready)
        reply = await gateway.ask()
        assert reply.header("x-served-by") == "up@127.0.0.1"
        report = {"models": [gateway.pool.status()]}
        shown = overview(parsed, [report, report], {})[0]["replicas"]
        assert [each["name"] for each in shown] == names()
        # What an operator says of the name holds for addresses that come later.
        gateway.fleet.drain("up")
        found.append("127.0.0.3")
        await until(lambda: len(names()) == 3)
        assert all(each.load.drained for each in gateway.pool.replicas)
        gateway.fleet.undrain("up")
        gateway.fleet.drain("up@127.0.0.2")
        assert [each.load.drained for each in gateway.pool.replicas] == [False, True, False]
        # A lookup that fails changes nothing; one that finds less does.
        kept, found[:] = list(found), []
        await asyncio.sleep(0.05)
        assert len(names()) == 3
        found[:] = kept[:1]
        await until(lambda: names() == ["up@127.0.0.1"])
        assert (await gateway.ask()).status == 200
    await upstream.stop()


async def test_names_are_looked_up_for_real():
    loop = asyncio.get_running_loop()
    found = await dns.addresses_of(loop, "localhost", 80)
    assert "127.0.0.1" in found and found == sorted(found)
    seen = []
    following = asyncio.ensure_future(
        dns.follow("localhost", dns.of_host("localhost", 80), 0.01, seen.append, random.Random(1))
    )
    await asyncio.sleep(0.05)
    following.cancel()
    # Told once, for it did not change.
    assert [[place.host for place in places] for places in seen] == [found]


async def test_health_is_asked_by_path_and_takes_two_failures():
    status, looks = "200 OK", 0

    async def script(call):
        nonlocal looks
        if call.target == "/health":
            looks += 1
            await call.answer(b"", status)
        else:
            await call.answer(call.upstream.name.encode())

    upstreams = Upstream("a", script), Upstream("b")
    async with relaying(*upstreams, replicas='health = "/health"') as gateway:
        sick = gateway.pool.replicas[0]
        assert sick.ready and looks
        status = "500 Ill"
        await until(lambda: sick.state == "unreachable")
        assert sick.why == "GET /health answered 500"
        assert {(await gateway.ask(f"/{n}")).body for n in range(6)} == {b"b"}
        status = "204 Well"
        await until(lambda: sick.ready)
        assert sick.load.ramping  # slow start


async def test_a_drained_replica_finishes_what_it_has():
    go = asyncio.Event()

    async def script(call):
        if call.target == "/slow":
            await go.wait()
        await call.answer(call.upstream.name.encode())

    async with relaying(Upstream("a", script), Upstream("b", script)) as gateway:
        slow = [await gateway.ask("/slow", complete=False) for _ in range(4)]
        await until(lambda: sum(each.load.in_flight for each in gateway.pool.replicas) == 4)
        gateway.fleet.drain("a")
        assert gateway.pool.replicas[0].state == "draining"
        assert {(await gateway.ask(f"/{n}")).body for n in range(6)} == {b"b"}
        go.set()
        await until(lambda: all(reply.complete for reply in slow))
        gateway.fleet.undrain("a")
        assert gateway.pool.replicas[0].ready
        gateway.fleet.set_weight("a", 3.0)
        assert gateway.pool.replicas[0].load.weight == 3.0


async def test_a_process_that_has_not_answered_yet_is_loading_and_newcomers_begin_slowly(tmp_path):
    upstream = Upstream("a")
    await upstream.start()
    run = 'name = "own"\nkind = "http"\ncommand = ["x", "{port}"]\nhealth_s = 0.01\n'
    text = f'[[models]]\nname = "m"\n[[models.replicas]]\n{run}'
    fleet = HttpFleet(tmp_path, loop=asyncio.get_running_loop(), rng=random.Random(0))
    try:
        fleet.apply(parse(text, PATH, {}))
        await fleet.met()
        (pool,) = fleet.pools()
        (own,) = pool.replicas
        assert own.state == "loading" and "not been started" in pool.reason()
        (tmp_path / "own.port").write_text(str(upstream.port))
        await until(lambda: own.ready)
        assert not own.load.ramping and own.restarts == 0  # it is no slower than others
        await upstream.stop()
        await until(lambda: own.state == "unreachable")
        await upstream.start()
        await until(lambda: own.ready)
        assert own.load.ramping and own.restarts == 1
        second = text + replica("second", upstream.port)
        fleet.apply(parse(second, PATH, {}))
        await until(lambda: len(pool.replicas) == 2 and pool.replicas[1].ready)
        assert pool.replicas[1].load.ramping
    finally:
        await fleet.close()
        await upstream.stop()


def test_a_spawned_replica_is_told_a_port_and_keeps_it(tmp_path):
    spec = ReplicaConfig(name="r", kind="http", command=("{python}", "x", "--port={port}"))
    assert address_of(spec, tmp_path) is None
    first = command_for(spec, tmp_path)
    port = int(first[2].removeprefix("--port="))
    assert first[:2] == [sys.executable, "x"]
    assert address_of(spec, tmp_path) == f"http://127.0.0.1:{port}"
    assert command_for(spec, tmp_path) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        other = command_for(spec, tmp_path)
    assert other != first and address_of(spec, tmp_path) == f"http://127.0.0.1:{other[2][7:]}"


def test_a_spawned_replica_may_listen_on_a_socket(tmp_path):
    spec = ReplicaConfig(name="r", kind="http", command=("x", "unix:{socket}"))
    left = tmp_path / "r.sock"
    left.write_text("left by a killed process")
    assert command_for(spec, tmp_path) == ["x", f"unix:{left}"]
    assert not left.exists()
    assert address_of(spec, tmp_path) == f"unix:{left}"


async def test_an_upstream_may_be_a_socket(tmp_path):
    upstream = Upstream("a")
    server = await asyncio.start_unix_server(upstream._serve, str(tmp_path / "up.sock"))
    text = f"""
[[models]]
name = "m"
[models.relay]
api = "web"
[[models.replicas]]
name = "a"
kind = "http"
address = "unix:{tmp_path}/up.sock"
[[routes]]
path = "/"
model = "m"
"""
    async with relaying(Upstream("b")) as gateway:
        gateway.fleet.apply(parse(text, PATH, {}))
        await gateway.fleet.met()
        assert (await gateway.ask()).body == b"a"
    server.close()


@pytest.mark.parametrize(
    "address, place, authority, prefix",
    [
        ("http://h", "h:80", b"h", b""),
        ("http://[::1]:9/base/", "[::1]:9", b"[::1]:9", b"/base"),
        ("https://h.example", "h.example:443", b"h.example", b""),
    ],
)
def test_addresses_are_read(address, place, authority, prefix):
    endpoint = Endpoint.parse(address)
    assert (endpoint.place, endpoint.authority, endpoint.prefix) == (place, authority, prefix)
    assert (endpoint.tls is not None) == address.startswith("https")
    assert endpoint.at("10.0.0.1").server_name == endpoint.server_name


async def test_replicas_may_get_a_host_and_a_prefix_of_their_own():
    upstream = Upstream("a")
    await upstream.start()
    async with relaying(Upstream("b")) as gateway:
        written = f"""
[[models]]
name = "m"
[models.relay]
api = "web"
host = "replica"
[[models.replicas]]
name = "a"
kind = "http"
address = "http://127.0.0.1:{upstream.port}/base"
[[routes]]
path = "/"
model = "m"
"""
        gateway.fleet.apply(parse(written, PATH, {}))
        await gateway.fleet.met()
        await gateway.ask("/x")
        assert upstream.calls[0].target == "/base/x"
        assert upstream.calls[0].header("host") == f"127.0.0.1:{upstream.port}"
        assert upstream.calls[0].header("x-forwarded-host") == "gateway"
    await upstream.stop()
