"""What is no request, or not one that every server reads the same way, is refused and closed."""

from __future__ import annotations

import gzip

import orjson
import pytest

from gateway.lane import Limits
from tests.gateway.lane.fakes import Echo, Wire, chunked, make_lane, request

GET = b"GET /x HTTP/1.1\r\nhost: test\r\n"
POST = b"POST /x HTTP/1.1\r\nhost: test\r\n"
TE = b"transfer-encoding: chunked\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: test\r\n\r\n"

REFUSED = {
    # the request line
    "no version (HTTP/0.9)": (400, b"GET /x\r\n\r\n"),
    "HTTP/2.0": (505, b"GET /x HTTP/2.0\r\nhost: test\r\n\r\n"),
    "HTTP/1.2": (505, b"GET /x HTTP/1.2\r\nhost: test\r\n\r\n"),
    "HTTP/0.9 spelt out": (505, b"GET /x HTTP/0.9\r\nhost: test\r\n\r\n"),
    "long version": (400, b"GET /x HTTP/1.10\r\nhost: test\r\n\r\n"),
    "lower-case protocol": (400, b"GET /x http/1.1\r\nhost: test\r\n\r\n"),
    "another protocol": (400, b"SOURCE /x ICE/1.0\r\nhost: test\r\n\r\n"),
    "the HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a TLS hello": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "two spaces": (400, b"GET  /x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "two spaces before the version": (400, b"GET /x  HTTP/1.1\r\nhost: test\r\n\r\n"),
    "space at the end": (400, b"GET /x HTTP/1.1 \r\nhost: test\r\n\r\n"),
    "tab": (400, b"GET\t/x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "space before the method": (400, b" GET /x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "lower-case method": (400, b"get /x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "CONNECT": (501, b"CONNECT test:80 HTTP/1.1\r\nhost: test\r\n\r\n"),
    "fragment": (400, b"GET /x#y HTTP/1.1\r\nhost: test\r\n\r\n"),
    "target that is no path": (400, b"GET x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "asterisk for GET": (400, b"GET * HTTP/1.1\r\nhost: test\r\n\r\n"),
    "another scheme": (400, b"GET ftp://test/x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "user in the target": (400, b"GET http://a@test/x HTTP/1.1\r\nhost: test\r\n\r\n"),
    "control character in the target": (400, b"GET /\x01 HTTP/1.1\r\nhost: test\r\n\r\n"),
    "NUL in the target": (400, b"GET /\0 HTTP/1.1\r\nhost: test\r\n\r\n"),
    "DEL in the target": (400, b"GET /\x7f HTTP/1.1\r\nhost: test\r\n\r\n"),
    "bytes beyond ASCII in the target": (400, b"GET /\xc3\xa9 HTTP/1.1\r\nhost: test\r\n\r\n"),
    # line ends
    "bare LF everywhere": (400, b"GET /x HTTP/1.1\nhost: test\n\n"),
    "bare LF after the request line": (400, b"GET /x HTTP/1.1\nhost: test\r\n\r\n"),
    "bare LF after a field": (400, GET + b"a: b\nc: d\r\n\r\n"),
    "bare LF at the end of the head": (400, GET + b"a: b\r\n\n"),
    "bare CR in a value": (400, GET + b"a: b\rc: d\r\n\r\n"),
    "bare CR after the request line": (400, b"GET /x HTTP/1.1\rhost: test\r\n\r\n"),
    # fields
    "no host": (400, b"GET /x HTTP/1.1\r\n\r\n"),
    "two hosts": (400, GET + b"host: test\r\n\r\n"),
    "two hosts, HTTP/1.0": (400, b"GET /x HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n"),
    "host with a path": (400, b"GET /x HTTP/1.1\r\nhost: test/y\r\n\r\n"),
    "host with a user": (400, b"GET /x HTTP/1.1\r\nhost: a@test\r\n\r\n"),
    "host with a space": (400, b"GET /x HTTP/1.1\r\nhost: te st\r\n\r\n"),
    "two hosts in one word": (400, b"GET /x HTTP/1.1\r\nhost: a,b\r\n\r\n"),
    "two hosts in one": (400, b"GET /x HTTP/1.1\r\nhost: a, b\r\n\r\n"),
    "port that is no number": (400, b"GET /x HTTP/1.1\r\nhost: test:8o\r\n\r\n"),
    "space before the colon": (400, GET + b"a : b\r\n\r\n"),
    "tab before the colon": (400, GET + b"a\t: b\r\n\r\n"),
    "space before a name": (400, b"GET /x HTTP/1.1\r\n host: test\r\n\r\n"),
    "folded value": (400, GET + b"a: b\r\n c\r\n\r\n"),
    "value folded by a tab": (400, GET + b"a: b\r\n\tc\r\n\r\n"),
    "empty name": (400, GET + b": b\r\n\r\n"),
    "no colon": (400, GET + b"abc\r\n\r\n"),
    "parenthesis in a name": (400, GET + b"a(b: c\r\n\r\n"),
    "bytes beyond ASCII in a name": (400, GET + b"\xe4: c\r\n\r\n"),
    "NUL in a value": (400, GET + b"a: b\0c\r\n\r\n"),
    "control character in a value": (400, GET + b"a: b\x01c\r\n\r\n"),
    "DEL in a value": (400, GET + b"a: b\x7fc\r\n\r\n"),
    "a name that was good with its colon": (400, GET + b"host\r\n\r\n"),
    "a host of unreasonable length": (431, b"GET /x HTTP/1.1\r\nhost: " + b"a" * 600 + b"\r\n\r\n"),
    "an unknown expectation": (417, GET + b"expect: 200-ok\r\ncontent-length: 1\r\n\r\nx"),
    # framing
    "two equal lengths": (400, POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
    "two lengths": (400, POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
    "a list of lengths": (400, POST + b"content-length: 3, 3\r\n\r\nabc"),
    "length with a sign": (400, POST + b"content-length: +3\r\n\r\nabc"),
    "negative length": (400, POST + b"content-length: -3\r\n\r\nabc"),
    "hexadecimal length": (400, POST + b"content-length: 0x3\r\n\r\nabc"),
    "length with an underscore": (400, POST + b"content-length: 1_0\r\n\r\n0123456789"),
    "empty length": (400, POST + b"content-length:\r\n\r\n"),
    "length of two words": (400, POST + b"content-length: 3 3\r\n\r\nabc"),
    "length beyond 64 bits": (400, POST + b"content-length: 18446744073709551619\r\n\r\nabc"),
    "length and chunks": (400, POST + b"content-length: 4\r\n" + TE + b"\r\n0\r\n\r\n" + SMUGGLED),
    "chunks and length": (400, POST + TE + b"content-length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED),
    "chunks twice": (400, POST + TE + TE + b"\r\n0\r\n\r\n"),
    "chunks and identity": (
        400,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    ),
    "identity": (400, POST + b"transfer-encoding: identity\r\n\r\n"),
    "nearly chunked": (400, POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "chunked behind a vertical tab": (
        400,
        POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    "gzip, chunked": (501, POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": (400, b"POST /x HTTP/1.0\r\n" + TE + b"\r\n0\r\n\r\n"),
    "space in the coding's name": (400, POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n"),
    # chunks
    "size that is no number": (400, POST + TE + b"\r\nxyz\r\n"),
    "size with a sign": (400, POST + TE + b"\r\n+3\r\nabc\r\n0\r\n\r\n"),
    "size with 0x": (400, POST + TE + b"\r\n0x3\r\nabc\r\n0\r\n\r\n"),
    "size with an underscore": (400, POST + TE + b"\r\n1_0\r\n"),
    "size of nine digits": (400, POST + TE + b"\r\n100000003\r\nabc\r\n0\r\n\r\n"),
    "empty size": (400, POST + TE + b"\r\n\r\nabc\r\n0\r\n\r\n"),
    "space before the size": (400, POST + TE + b"\r\n 3\r\nabc\r\n0\r\n\r\n"),
    "space after the size": (400, POST + TE + b"\r\n3 \r\nabc\r\n0\r\n\r\n"),
    "bare LF after a size": (400, POST + TE + b"\r\n3\nabc\r\n0\r\n\r\n"),
    "bare CR in an extension": (400, POST + TE + b"\r\n3;a=\rb\r\nabc\r\n0\r\n\r\n"),
    "control character in an extension": (400, POST + TE + b"\r\n3;a=\x01\r\nabc\r\n0\r\n\r\n"),
    "endless extension": (400, POST + TE + b"\r\n3;" + b"a" * 400 + b"\r\nabc\r\n0\r\n\r\n"),
    "chunk longer than its size": (400, POST + TE + b"\r\n3\r\nabcd\r\n0\r\n\r\n"),
    "chunk ended by a bare LF": (400, POST + TE + b"\r\n3\r\nabc\n0\r\n\r\n"),
    "trailer without a colon": (400, POST + TE + b"\r\n0\r\nabc\r\n\r\n"),
    "folded trailer": (400, POST + TE + b"\r\n0\r\na: b\r\n c\r\n\r\n"),
    "bare LF after a trailer": (400, POST + TE + b"\r\n0\r\na: b\n\r\n"),
    # codings of the content
    "unknown content-encoding": (501, request("POST", "/x", b"abc", "content-encoding: br")),
    "two content-encodings": (501, request("POST", "/x", b"a", "content-encoding: gzip, gzip")),
    "no gzip data": (400, request("POST", "/x", b"abc", "content-encoding: gzip")),
    "no deflate data": (400, request("POST", "/x", b"abc", "content-encoding: deflate")),
    "gzip cut off": (
        400,
        request("POST", "/x", gzip.compress(b"abc")[:-3], "content-encoding: gzip"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_request_is_refused_and_nothing_behind_it_is_read(name):
    status, raw = REFUSED[name]
    lane = make_lane(Echo())
    whole = Wire(lane).send(raw + SMUGGLED)
    trickled = Wire(lane).send(*(raw[at : at + 1] for at in range(len(raw))), SMUGGLED)
    for wire in (whole, trickled):
        (answer,) = wire.answers()
        assert answer.status == status
        assert answer.headers[b"connection"] == b"close"
        assert set(orjson.loads(answer.body)) == {"error"}
        assert wire.transport.eof_written or wire.transport.closed
    assert lane.stats.refused == 2
    # ... and the lane still serves a good request afterwards.
    assert Wire(lane).send(request()).statuses() == [200]


@pytest.mark.parametrize("name", REFUSED)
async def test_earlier_requests_are_answered_before_the_refusal(name):
    status, raw = REFUSED[name]
    wire = Wire(make_lane(Echo())).send(request() + raw + SMUGGLED)
    assert wire.statuses() == [200, status]


LIMITS = Limits(max_line=100, max_head=400, max_headers=5, max_body=50)
TOO_MUCH = {
    "request line": (414, request("GET", "/" + "x" * 100)),
    "request line without an end": (414, b"GET /" + b"x" * 200),
    "request line longer than a head": (414, request("GET", "/" + "x" * 5000)),
    "the same without an end": (414, b"GET /" + b"x" * 5000),
    "head": (431, request("GET", "/x", None, "a: " + "b" * 400)),
    "head without an end": (431, GET + b"a: " + b"b" * 400),
    "number of fields": (431, request("GET", "/x", None, *["a: b"] * 6)),
    "extension without an end": (400, POST + TE + b"\r\n3;" + b"a" * 500),
    "trailer without an end": (400, POST + TE + b"\r\n0\r\na:" + b"a" * 500),
    "length": (413, request("POST", "/x", b"x" * 51)),
    "chunks": (413, chunked(b"x" * 30, b"y" * 21)),
    "inflated gzip": (
        413,
        request("POST", "/x", gzip.compress(b"x" * 51), "content-encoding: gzip"),
    ),
    "trailers": (431, chunked(b"x", trailer=b"a: b\r\n" * 80)),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_too_much_is_refused(name):
    status, raw = TOO_MUCH[name]
    lane = make_lane(Echo(), LIMITS)
    for pieces in ([raw], [raw[at : at + 1] for at in range(len(raw))]):
        wire = Wire(lane).send(*pieces)
        assert wire.statuses() == [status]
    assert Wire(lane).send(request()).statuses() == [200]


ENOUGH = {
    "request line": request("GET", "/" + "x" * (100 - len("GET / HTTP/1.1"))),
    "number of fields": request("GET", "/x", None, *["a: b"] * 4),
    "length": request("POST", "/x", b"x" * 50),
    "chunks": chunked(b"x" * 30, b"y" * 20),
    "inflated gzip": request("POST", "/x", gzip.compress(b"x" * 50), "content-encoding: gzip"),
}


@pytest.mark.parametrize("name", ENOUGH)
async def test_as_much_as_is_allowed_is_taken(name):
    assert Wire(make_lane(Echo(), LIMITS)).send(ENOUGH[name]).statuses() == [200]


async def test_a_long_body_is_refused_before_it_is_sent():
    wire = Wire(make_lane(Echo(), LIMITS)).send(request("POST", "/x", b"x" * 51)[:-51])
    assert wire.statuses() == [413]


async def test_what_is_refused_is_read_on_for_a_while_and_then_no_more():
    wire = Wire(make_lane(Echo(), Limits(max_body=10, linger_bytes=2000)))
    wire.send(request("POST", "/x", b"x" * 4000)[:-4000])
    assert wire.transport.eof_written and wire.transport.reading
    wire.send(b"x" * 1000)
    assert not wire.transport.closed
    wire.send(b"x" * 1001)
    assert wire.transport.aborted
    assert wire.statuses() == [413]


async def test_all_bodies_together_have_a_limit():
    lane = make_lane(Echo(), Limits(max_bodies=100))
    body = b"x" * 60
    first = Wire(lane).send(request("POST", "/x", body)[:-1])
    second = Wire(lane).send(request("POST", "/x", body)[:-1])
    assert (first.raw, second.statuses()) == (b"", [503])
    assert second.answers()[0].headers[b"retry-after"] == b"1"
    first.send(b"x")
    assert first.statuses() == [200] and lane.gathered == 0
    for ending in (b"\r\nxyz", gzip.compress(b"x")):
        wires = [Wire(lane).send(chunked(body)[:-20]) for _ in range(2)]
        assert lane.gathered > 0
        wires[0].send(ending)
        wires[0].transport.close()
        wires[1].send(b"zz").eof()
        assert lane.gathered == 0
    assert Wire(lane).send(request("POST", "/x", body)[:-1], b"x").statuses() == [200]
    assert lane.gathered == 0


async def test_the_refusals_of_the_memoised_path_and_the_first_are_the_same():
    lane = make_lane(Echo())
    raw = b"GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"
    assert [Wire(lane).send(raw).statuses() for _ in range(4)] == [[400]] * 4


async def test_an_unknown_path_is_not_found_where_no_application_is():
    wire = Wire(make_lane(None, x=Echo())).send(request("GET", "/nowhere"))
    assert wire.statuses() == [404]
