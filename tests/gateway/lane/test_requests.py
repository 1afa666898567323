"""Requests as bytes, cut anywhere: the same answers, in order, whatever the cuts."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from types import SimpleNamespace

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.lane import Limits
from gateway.lane.head import HeadReader
from gateway.lane.refusal import Refused
from tests.gateway.lane.fakes import (
    Echo,
    Later,
    StreamEcho,
    Wire,
    chunked,
    make_lane,
    request,
)

SOME = b"some content \0\r\n\r\n"
# raw request -> what Echo says of it
UNDERSTOOD = {
    "GET": (request(), b"GET /x "),
    "query": (request("GET", "/x?a=b&c=?"), b"GET /x?a=b&c=? "),
    "percent-encoding stays": (request("GET", "/a%2Fb%00?%20"), b"GET /a%2Fb%00?%20 "),
    "dots stay": (request("GET", "/a/../b//c"), b"GET /a/../b//c "),
    "POST": (request("POST", "/x", SOME), b"POST /x " + SOME),
    "PUT": (request("PUT", "/x", SOME), b"PUT /x " + SOME),
    "empty body": (request("POST", "/x", b""), b"POST /x "),
    "GET with a body": (request("GET", "/x", SOME), b"GET /x " + SOME),
    "another method": (request("FROBNICATE", "/x", SOME), b"FROBNICATE /x " + SOME),
    "OPTIONS *": (request("OPTIONS", "*"), b"OPTIONS * "),
    "absolute target": (request("GET", "http://other:80/x?y"), b"GET /x?y "),
    "absolute target without a path": (request("GET", "https://other?y"), b"GET /?y "),
    "empty lines first": (b"\r\n\r\n" + request(), b"GET /x "),
    "IPv6 host": (b"GET /x HTTP/1.1\r\nhost: [::1]:80\r\n\r\n", b"GET /x "),
    "empty host": (b"GET /x HTTP/1.1\r\nhost:\r\n\r\n", b"GET /x "),
    "blanks around values": (
        b"POST /x HTTP/1.1\r\nHOST: \t test \r\nContent-Length: 2\t \r\n\r\nab",
        b"POST /x ab",
    ),
    "bytes beyond ASCII in a value": (request("GET", "/x", None, "a: ä"), b"GET /x "),
    "chunks": (chunked(b"ab", SOME, b"x" * 300), b"POST /x ab" + SOME + b"x" * 300),
    "no chunk": (chunked(), b"POST /x "),
    "trailers": (chunked(SOME, trailer=b"a: b\r\nc:\r\n"), b"POST /x " + SOME),
    "extensions and leading zeros": (
        chunked(b"abc").replace(b"3\r\n", b'0003 ;a="b;c";d\r\n'),
        b"POST /x abc",
    ),
    "Chunked": (chunked(SOME).replace(b"chunked", b"Chunked"), b"POST /x " + SOME),
    "gzip": (
        request("POST", "/x", gzip.compress(SOME), "content-encoding: gzip"),
        b"POST /x " + SOME,
    ),
    "two gzip members": (
        request(
            "POST", "/x", gzip.compress(b"ab") + gzip.compress(b"cd"), "content-encoding: X-Gzip"
        ),
        b"POST /x abcd",
    ),
    "deflate": (
        request("POST", "/x", zlib.compress(SOME), "content-encoding: deflate"),
        b"POST /x " + SOME,
    ),
    "raw deflate": (
        request("POST", "/x", zlib.compress(SOME, wbits=-15), "content-encoding: deflate"),
        b"POST /x " + SOME,
    ),
    "identity": (
        request("POST", "/x", SOME, "content-encoding: identity"),
        b"POST /x " + SOME,
    ),
    "offer to upgrade, not taken": (
        request("POST", "/x", SOME, "connection: upgrade", "upgrade: h2c"),
        b"POST /x " + SOME,
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_a_request_is_understood_however_it_is_cut(name):
    raw, expected = UNDERSTOOD[name]
    lane = make_lane(Echo())
    for at in range(len(raw)):
        wire = Wire(lane).send(raw[:at], raw[at:])
        (answer,) = wire.answers()
        assert (answer.status, answer.body, answer.whole) == (200, expected, True)
        # The connection goes on, on the quick path and on the other.
        wire.send(request("POST", "/again", b"y"), b"\r\n" + request())
        assert [a.body for a in wire.answers()] == [expected, b"POST /again y", b"GET /x "]
    assert lane.stats.refused == 0


@pytest.mark.parametrize("name", UNDERSTOOD)
async def test_pipelined_requests_are_answered_in_order(name):
    raw, expected = UNDERSTOOD[name]
    many = raw * 3 + request("POST", "/last", b"z")
    for pieces in ([many], [many[at : at + 1] for at in range(len(many))]):
        wire = Wire(make_lane(Echo())).send(*pieces)
        assert [a.body for a in wire.answers()] == [expected] * 3 + [b"POST /last z"]


STREAMED = [name for name in UNDERSTOOD if "gzip" not in name and "deflate" not in name]


@pytest.mark.parametrize("name", STREAMED)
async def test_streamed_bodies_arrive_the_same(name):
    raw, expected = UNDERSTOOD[name]
    many = raw + request("POST", "/last", b"z")
    for pieces in ([many], [many[at : at + 1] for at in range(len(many))]):
        wire = Wire(make_lane(StreamEcho())).send(*pieces)
        assert [a.body for a in wire.answers()] == [expected, b"POST /last z"]


async def test_streamed_bodies_keep_their_coding():
    packed = gzip.compress(SOME)
    wire = Wire(make_lane(StreamEcho()))
    wire.send(request("POST", "/x", packed, "content-encoding: gzip"))
    wire.send(request("POST", "/x", b"abc", "content-encoding: br"))
    assert [a.body for a in wire.answers()] == [b"POST /x " + packed, b"POST /x abc"]


one_request = st.sampled_from([raw for raw, _ in UNDERSTOOD.values()])


@given(st.lists(one_request, min_size=1, max_size=6), st.data())
async def test_no_way_of_cutting_changes_an_answer(requests, data):
    raw = b"".join(requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    pipeline = data.draw(st.integers(2, 4))
    whole = Wire(make_lane(Echo())).send(raw)
    cut = Wire(make_lane(Echo(), Limits(pipeline=pipeline))).send(*pieces)
    assert cut.raw == whole.raw
    assert len(whole.answers()) == len(requests)


@given(st.lists(one_request, min_size=1, max_size=8), st.data())
async def test_answers_keep_the_order_of_requests_whatever_order_handlers_take(requests, data):
    later = Later()
    wire = Wire(make_lane(later)).send(b"".join(requests))
    expected = Wire(make_lane(Echo())).send(b"".join(requests))
    for at in data.draw(st.permutations(range(len(requests)))):
        Echo()(later.seen[at])
    assert wire.raw == expected.raw


TOKENS = st.sampled_from(
    [
        b"GET /x HTTP/1.1\r\n", b"POST http://a/b HTTP/1.0\r\n", b"host: a\r\n", b"Host:a:1 \r\n",
        b"content-length: 3\r\n", b"content-length:3\r\n", b"transfer-encoding: chunked\r\n",
        b"transfer-encoding:\r\n", b"connection: close, x\r\n", b"x: \xff y\t\r\n", b"\r\n", b"\n",
        b"\r", b" ", b"\t", b":", b"\0", b"x", b"upgrade: a\r\n", b"connection: upgrade\r\n",
    ]
)  # fmt: skip


def accepted_by_llhttp(raw: bytes) -> list[tuple[bytes, bytes]] | None:
    """The fields, or None where llhttp takes this for no head."""
    fields: list[tuple[bytes, bytes]] = []
    collector = SimpleNamespace(on_header=lambda name, value: fields.append((name.lower(), value)))
    with contextlib.suppress(httptools.HttpParserUpgrade):
        try:
            httptools.HttpRequestParser(collector).feed_data(raw)
        except httptools.HttpParserError:
            return None
    return [(name, value.strip(b" \t")) for name, value in fields]


@given(st.lists(TOKENS, max_size=8))
def test_no_head_is_taken_that_llhttp_refuses_or_reads_otherwise(tokens):
    raw = b"GET /x HTTP/1.1\r\nhost: a\r\n" * (len(tokens) % 2) + b"".join(tokens) + b"\r\n\r\n"
    raw = raw.lstrip(b"\r\n")
    raw = raw[: raw.find(b"\r\n\r\n") + 4]
    try:
        head = HeadReader(Limits()).read(raw)
    except Refused:
        return
    theirs = accepted_by_llhttp(raw)
    assert theirs is not None
    assert [f for f in head.headers if f[0] != b"host"] == [f for f in theirs if f[0] != b"host"]


@given(st.binary(max_size=12), st.sampled_from([b"x%b: 1", b"x: %b", b"x:1%b2", b"%b"]))
def test_a_line_that_llhttp_refuses_is_refused(some, template):
    raw = b"GET /x HTTP/1.1\r\nhost: a\r\n" + template % some + b"\r\n\r\n"
    if raw.find(b"\r\n\r\n") + 4 < len(raw):
        return
    try:
        head = HeadReader(Limits()).read(raw)
    except Refused:
        return
    assert accepted_by_llhttp(raw) == head.headers


def read_by_h11(raw: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes, bytes]:
    """Target, fields, body and what follows, in the opinion of another careful parser."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(raw)
    head, body = server.next_event(), b""
    assert isinstance(head, h11.Request)
    while isinstance(event := server.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage), "ours saw an end"
    return head.target, list(head.headers), body, server.trailing_data[0]


@given(st.lists(TOKENS, max_size=8), st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"0"]))
async def test_no_request_is_taken_that_another_parser_reads_otherwise(tokens, rest):
    raw = b"GET /x HTTP/1.1\r\nhost: a\r\n" * (len(tokens) % 2) + b"".join(tokens)
    raw += b"\r\n" + rest
    later = Later()
    wire = Wire(make_lane(later)).send(raw)
    if not later.seen:
        return
    exchange = later.seen[0]
    target, fields, body, _ = read_by_h11(raw.lstrip(b"\r\n"))
    assert exchange.body == body
    assert [f for f in exchange.headers if f[0] != b"host"] == [
        f for f in fields if f[0] != b"host"
    ]
    assert target.endswith((exchange.path + exchange.query).encode())
    assert wire.raw == b"" or len(later.seen) > 1 or 400 in wire.statuses()


async def test_the_exchange_says_what_was_asked():
    later = Later()
    Wire(make_lane(later)).send(request("POST", "http://other/a?b", b"c", "X-A: 1", "x-a: 2"))
    (exchange,) = later.seen
    assert (exchange.method, exchange.path, exchange.query) == ("POST", "/a", "b")
    assert (exchange.header(b"x-a"), exchange.header(b"x-b")) == (b"1", None)
    assert exchange.header(b"host") == b"other"
    assert (exchange.peer, exchange.tls, exchange.arrived) == ("192.0.2.7", False, 1000.0)


async def test_what_repeats_is_remembered_and_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("gateway.lane.head.HEADS", 8)
    monkeypatch.setattr("gateway.lane.head.LINES", 16)
    lane = make_lane(Echo())
    heads = lane.heads
    for number in range(200):
        for field in ("x-same: 1", f"x-id: {number}", f"host{number}: 1", "x-long: " + "y" * 600):
            one = request("GET", f"/{number}", None, field)
            assert Wire(lane).send(*[one] * 4).statuses() == [200] * 4
            odd = request("POST", "/x", b"y" * (number % 50), f"connection: x{number}")
            assert Wire(lane).send(*[odd] * 4).statuses() == [200] * 4
        assert len(heads.memo) <= 8 and len(heads._framings) <= 8
        assert len(heads._request_lines) <= 8
        # One head may add a few lines beyond the mark.
        assert len(heads._known) <= 16 + 5 and len(heads._names) <= 16
        assert heads._own_lines <= heads._known.keys()
        assert len(heads.patterns) <= 2048
    assert not any(len(line) > 512 for line in heads._known)


VALUES = st.sampled_from(
    ["1", "2", "9", "a b", " c ", "\t", "\0", "\r", "\n", "ab", ":", "\x7f", "é"]
)


# Of one length, so that they meet in one pattern; some would be fields of their own in its holes.
SMUGGLING = st.sampled_from(
    ["a" * 20, "b" * 20, "1\r\nconnection: close", "1\r\ncontent-length: 3", "1\r\ny:" + "z" * 15]
)
LENGTHS = st.sampled_from(["1", "2", "9", " ", "x", "\0"])


@settings(max_examples=300)
@given(
    st.lists(st.tuples(SMUGGLING, SMUGGLING, st.just("P"), LENGTHS), min_size=1, max_size=12)
    | st.lists(st.tuples(VALUES, VALUES, st.sampled_from("GHP"), VALUES), min_size=1, max_size=12)
)
def test_heads_of_one_pattern_are_read_as_if_they_were_alone(heads):
    remembers = HeadReader(Limits())
    lines = {"G": "GET /x HTTP/1.1", "H": "HEAD / HTTP/1.0", "P": "POST /y HTTP/1.1"}
    for first, second, line, length in heads * 4:
        fields = ("host: a", f"id:{first}", "x: y", f"trace: {second}", f"content-length:{length}")
        raw = "\r\n".join([lines[line], *fields, "", ""]).encode()
        end = raw.find(b"\r\n\r\n") + 4
        assert said(remembers, raw, end) == said(HeadReader(Limits()), raw, end)


async def test_a_request_id_is_read_in_a_known_head(monkeypatch):
    lane = make_lane(later := Later())
    wire = Wire(lane)
    for number in range(10, 50):
        body = b"x" * number
        wire.send(request("POST", "/x", body, f"x-request-id: {number}", "x: y"))
        exchange = later.seen[-1]
        assert exchange.header(b"x-request-id") == str(number).encode()
        assert exchange.header(b"content-length") == str(number).encode()
        assert exchange.body == body
        exchange.respond(200, b"{}")
    assert len(lane.heads.patterns) == 1 and len(lane.heads.memo) == 0
    pattern = next(iter(lane.heads.patterns.values()))
    # Another client's heads of the same length take the place of one that does not come any more.
    for number in range(10, 50):
        other = request("POST", "/z", b"x" * 20, f"y-request-id: {number}", "x: z")
        assert len(other) - 20 in lane.heads.patterns
        wire.send(other)
        later.seen[-1].respond(200, b"{}")
    assert next(iter(lane.heads.patterns.values())) is not pattern


def said(reader: HeadReader, raw: bytes, end: int) -> object:
    try:
        head = reader.find(raw, end)
    except Refused as refusal:
        return refusal.status, refusal.message
    names = [name for name in dir(head.framing) if not name.startswith("_")]
    framing = {name: getattr(head.framing, name) for name in names}
    return head.method, head.path, head.query, head.headers, framing


LINES = st.sampled_from(
    [
        "host: a", "host: b", "Host: a", "content-length: 3", "content-length: 0", "x: 1", "x: 2",
        "content-length: 4", "transfer-encoding: chunked", "connection: close", "expect: 1", "x",
        "expect: 100-continue", "content-encoding: gzip", "connection: upgrade", "upgrade: a",
    ]
)  # fmt: skip


@given(st.lists(st.lists(LINES, max_size=5), min_size=1, max_size=12), st.integers(1, 4))
def test_a_reader_with_memory_reads_as_one_without(heads, entries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.lane.head.HEADS", entries)
        patch.setattr("gateway.lane.head.LINES", entries)
        remembers = HeadReader(Limits())
        for lines in heads * 3:
            for line in (
                "GET /x HTTP/1.1",
                "GET /x HTTP/1.0",
                "HEAD /x?y HTTP/1.0",
                "GET http://h/ HTTP/1.1",
            ):
                raw = "\r\n".join([line, *lines, "", ""]).encode()
                assert said(remembers, raw, len(raw)) == said(HeadReader(Limits()), raw, len(raw))
