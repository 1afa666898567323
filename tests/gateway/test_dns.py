"""Names of services: asked for, read, followed, and turned into replicas."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import dns_client
from gateway.config import ConfigError, parse
from gateway.dns import Place, follow, of_host, of_service
from gateway.dns_client import DnsClient, DnsFailed, parse_server, system_servers
from gateway.dns_message import BadAnswer, ask, read
from gateway.http_fleet import HttpFleet
from tests.gateway.dns_server import DnsServer, srv
from tests.gateway.relay.fakes import Relay, Upstream, until

NAME = "_http._tcp.web.example"


@asynccontextmanager
async def server():
    made = DnsServer()
    await made.start()
    try:
        yield made, DnsClient([("127.0.0.1", made.port)])
    finally:
        await made.stop()


# ------------------------------------------------------------------------------------------ bytes


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_none(data):
    with pytest.raises(BadAnswer):
        read(data, 7, NAME)


@given(st.data())
def test_an_answer_that_is_changed_or_cut_off_is_read_to_its_end(data):
    made = DnsServer()
    made.services[NAME] = [srv(1, 2, 80, "a.example"), srv(1, 2, 81, "b.example")]
    made.hosts["a.example"] = ["10.0.0.1"]
    good = made.answer(ask(7, NAME), truncated=False)
    reply = read(good, 7, NAME)
    assert [(s.port, s.target) for s in reply.services] == [(80, "a.example"), (81, "b.example")]
    assert reply.addresses == {"a.example": ["10.0.0.1"]}
    broken = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=4)):
        if at < len(broken):
            broken[at] = data.draw(st.integers(0, 255))
    with suppress(BadAnswer):
        read(bytes(broken), 7, NAME)


def test_names_that_point_at_themselves_end():
    loop = ask(7, NAME)[:12] + b"\xc0\x0c" + b"\0\x21\0\x01"
    with pytest.raises(BadAnswer):
        read(b"\0\x07\x80\0" + loop[4:], 7, NAME)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, "ü.example"])
def test_what_is_no_name_is_not_asked_for(name):
    with pytest.raises(ValueError):
        ask(1, name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.2", ("10.0.0.2", 53)),
        ("10.0.0.2:8600", ("10.0.0.2", 8600)),
        ("[::1]:54", ("::1", 54)),
        ("::1", ("::1", 53)),
    ],
)
def test_addresses_of_servers(text, found):
    assert parse_server(text) == found


def test_the_hosts_own_servers(tmp_path):
    file = tmp_path / "resolv.conf"
    file.write_text("# us\nnameserver 10.1.1.1\nnameserver ::1\nsearch a.example b.example\n")
    assert system_servers(file) == ([("10.1.1.1", 53), ("::1", 53)], ["a.example", "b.example"])
    assert system_servers(tmp_path / "none") == ([("127.0.0.1", 53)], [])


# -------------------------------------------------------------------------------------- questions


async def test_a_service_is_found_with_its_weights():
    async with server() as (dns, client):
        dns.services[NAME] = [
            srv(1, 30, 80, "big.example"),
            srv(1, 10, 81, "small.example"),
            srv(2, 99, 82, "standby.example"),
        ]
        dns.hosts = {"big.example": ["10.0.0.2", "10.0.0.1"], "small.example": ["10.0.0.3"]}
        dns.hosts["standby.example"] = ["10.0.0.4"]
        dns.lies = True
        found = await of_service(NAME, client)()
        assert found.fresh_s == 60.0
        assert sorted(found.places) == [
            Place("10.0.0.1", 80, "big.example", 0.75),
            Place("10.0.0.2", 80, "big.example", 0.75),
            Place("10.0.0.3", 81, "small.example", 0.5),
            Place("10.0.0.4", 82, "standby.example", 1.0, rank=1),
        ]


async def test_a_target_without_addresses_is_looked_up():
    async with server() as (dns, client):
        dns.services[NAME] = [srv(0, 0, 80, "localhost")]
        places = (await of_service(NAME, client)()).places
        assert ("127.0.0.1", 80) in [(place.host, place.port) for place in places]
        addresses = (await of_host("localhost", 80)()).places
        assert "127.0.0.1" in [place.host for place in addresses]


async def test_a_standby_that_cannot_be_found_takes_nothing_from_the_others():
    async with server() as (dns, client):
        dns.services[NAME] = [srv(0, 0, 80, "localhost"), srv(1, 0, 81, "nowhere.invalid")]
        places = (await of_service(NAME, client)()).places
        assert {place.rank for place in places} == {0}
        dns.services[NAME] = [srv(0, 0, 80, "nowhere.invalid"), srv(1, 0, 81, "localhost")]
        with pytest.raises(OSError):  # what was found last stays
            await of_service(NAME, client)()


async def test_a_long_answer_is_asked_for_again_over_tcp():
    async with server() as (dns, client):
        dns.services[NAME] = [srv(0, 1, port, f"host-{port}.example") for port in range(1, 200)]
        dns.truncates = True
        assert len((await client.services(NAME)).services) == 199
        assert dns.over_tcp == 1


async def test_suffixes_are_tried_behind_a_name_that_is_not_there():
    async with server() as (dns, _):
        client = DnsClient([("127.0.0.1", dns.port)], ["one.example", "two.example"])
        dns.services["_http._tcp.web.two.example"] = [srv(0, 0, 80, "h.example")]
        assert (await client.services("_http._tcp.web")).services[0].target == "h.example"
        assert not (await client.services("_http._tcp.web.")).services


async def test_the_next_server_is_asked_when_one_fails(monkeypatch):
    monkeypatch.setattr(dns_client, "PATIENCE_S", 0.05)
    async with server() as (bad, _), server() as (good, _):
        good.services[NAME] = [srv(0, 0, 80, "h.example")]
        client = DnsClient([("127.0.0.1", bad.port), ("127.0.0.1", good.port)])
        bad.silent = True
        assert (await client.services(NAME)).services
        bad.silent, bad.code = False, 2
        assert (await client.services(NAME)).services
        with pytest.raises(DnsFailed, match="failed with code 2"):
            await DnsClient([("127.0.0.1", bad.port)]).services(NAME)


async def test_what_was_found_last_stays_when_a_lookup_fails():
    async with server() as (dns, client):
        seen: list[list[int]] = []
        dns.services[NAME] = [srv(0, 0, 80, "localhost")]
        dns.hosts = {"localhost": ["127.0.0.1"]}
        dns.ttl = 0
        task = asyncio.create_task(
            follow(
                NAME,
                of_service(NAME, client),
                0.001,
                lambda places: seen.append([place.port for place in places]),
                random.Random(1),
            )
        )
        await until(lambda: seen == [[80]])
        dns.services[NAME] = []
        asked = len(dns.asked)
        await until(lambda: len(dns.asked) > asked + 2)
        assert seen == [[80]]
        dns.services[NAME] = [srv(0, 0, 80, "localhost"), srv(0, 0, 81, "localhost")]
        await until(lambda: seen == [[80], [80, 81]])
        task.cancel()


# --------------------------------------------------------------------------------------- replicas


def config(more: str) -> str:
    return f'[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\nkind = "http"\n{more}\n'


async def test_replicas_come_and_go_with_the_records(tmp_path):
    ups = [Upstream(str(n)) for n in range(3)]
    async with server() as (dns, _):
        for up in ups:
            await up.start()
        dns.hosts, dns.ttl = {"localhost": ["127.0.0.1"]}, 0
        dns.services[NAME] = [
            srv(0, 3, ups[0].port, "localhost"),
            srv(0, 1, ups[1].port, "localhost"),
        ]
        text = config(
            f'address = "srv://{NAME}/base"\nresolver = "127.0.0.1:{dns.port}"\n'
            "discover_s = 0.01\nhealth_s = 0.05\nweight = 2.0"
        )
        fleet = HttpFleet(tmp_path, loop=asyncio.get_running_loop(), rng=random.Random(0))
        found = parse(text, tmp_path / "serve.toml", {})
        fleet.apply(found)
        (pool,) = fleet.pools()
        try:
            await until(lambda: sum(r.ready for r in pool.replicas) == 2)
            weights = {r.name: r.load.weight for r in pool.replicas}
            assert weights == {
                f"r@127.0.0.1:{ups[0].port}": 3.0,
                f"r@127.0.0.1:{ups[1].port}": 1.0,
            }
            assert {r.prefix for r in pool.replicas} == {b"/base"}
            fleet.apply(found)  # as a SIGHUP does: DNS's weights stay
            assert {r.name: r.load.weight for r in pool.replicas} == weights
            dns.services[NAME] = [srv(0, 1, up.port, "localhost") for up in ups[1:]]
            wanted = {f"r@127.0.0.1:{up.port}" for up in ups[1:]}
            await until(lambda: {r.name for r in pool.replicas if r.ready} == wanted)
            assert {r.load.weight for r in pool.replicas} == {2.0}
        finally:
            await fleet.close()
            for up in ups:
                await up.stop()


async def test_the_next_priority_takes_over_while_the_first_cannot_be_used(tmp_path):
    ups = [Upstream(str(n)) for n in range(4)]
    async with server() as (dns, _):
        for up in ups:
            await up.start()
        dns.hosts = {"localhost": ["127.0.0.1"]}
        dns.services[NAME] = [
            srv(10, 1, ups[0].port, "localhost"),
            srv(10, 1, ups[1].port, "localhost"),
            srv(20, 1, ups[2].port, "localhost"),
            srv(30, 1, ups[3].port, "localhost"),
        ]
        routes = '[[routes]]\npath = "/"\nmodel = "m"\n'
        text = config(
            f'address = "srv://{NAME}"\nresolver = "127.0.0.1:{dns.port}"\nhealth_s = 0.02'
        ).replace("[[models.replicas]]", '[models.relay]\napi = "web"\n[[models.replicas]]')
        relay = Relay(parse(text + routes, tmp_path / "serve.toml", {}), tmp_path)
        listening = await asyncio.get_running_loop().create_server(
            relay.lane.protocol, "127.0.0.1", 0
        )
        relay.port = listening.sockets[0].getsockname()[1]
        pool = relay.pool

        async def answered_by(count: int = 6) -> set[bytes]:
            replies = [await relay.ask() for _ in range(count)]
            assert {reply.status for reply in replies} == {200}
            return {reply.body for reply in replies}

        def state_of(up: Upstream) -> dict[str, object]:
            found = [r.describe(0.0) for r in pool.replicas if r.name.endswith(f":{up.port}")]
            return found[0]

        try:
            await until(lambda: sum(r.ready for r in pool.replicas) == 4)
            assert await answered_by() == {b"0", b"1"}
            assert "in reserve" in state_of(ups[2])["reason"] and not state_of(ups[0])["reason"]
            await ups[0].stop()
            assert await answered_by() == {b"1"}
            await ups[1].stop()
            assert await answered_by() == {b"2"}  # the first of them fails on 1, and is not lost
            assert not state_of(ups[2])["reason"]
            await ups[2].stop()
            assert await answered_by() == {b"3"}
            await ups[1].start()
            await until(lambda: state_of(ups[1])["state"] == "ready")
            assert await answered_by() == {b"1"}
            # Errors, too, are a reason: each is tried elsewhere, until a breaker says so at once.
            ups[1].script = lambda call: call.answer(b"no", "502 Bad Gateway")
            assert await answered_by(12) == {b"3"}
            relay.counters()
        finally:
            for client in relay.clients:
                client.transport.abort()
            listening.close()
            await relay.lane.drain(1)
            await relay.fleet.close()
            for up in ups:
                await up.stop()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('address = "srv://web.example"', "expected an address such as"),
        ('address = "http://h:1"\nresolver = "127.0.0.1"', "resolver: needs an"),
        (f'address = "srv://{NAME}"\nresolver = "h:99999"', "the address of a DNS server"),
    ],
)
def test_wrong_names_are_refused(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said):
        parse(config(more), tmp_path / "serve.toml", {})
