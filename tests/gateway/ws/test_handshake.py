"""Who may open a socket."""

from __future__ import annotations

import pytest
from websockets.utils import accept_key

from gateway.errors import GatewayError
from gateway.ws.handshake import accept
from tests.gateway.ws.fakes import KEY

RIGHT = [
    (b"host", b"gateway:8080"),
    (b"connection", b"upgrade"),
    (b"upgrade", b"WebSocket"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-key", KEY),
]


def without(name: bytes, *instead: bytes) -> list[tuple[bytes, bytes]]:
    return [field for field in RIGHT if field[0] != name] + [(name, value) for value in instead]


def test_the_key_is_answered_as_others_answer_it():
    fields = accept(RIGHT).decode()
    assert f"sec-websocket-accept: {accept_key(KEY.decode())}\r\n" in fields
    assert "protocol" not in fields and "extensions" not in fields


def test_our_protocol_is_chosen_among_those_offered():
    fields = accept([*RIGHT, (b"sec-websocket-protocol", b"other, penstock.v1")])
    assert b"sec-websocket-protocol: penstock.v1\r\n" in fields
    for others in (b"other", b"Penstock.V1"):
        assert b"protocol" not in accept([*RIGHT, (b"sec-websocket-protocol", others)])


@pytest.mark.parametrize(
    ("headers", "status", "named"),
    [
        (without(b"upgrade"), 426, "upgrade"),
        (without(b"upgrade", b"h2c"), 426, "upgrade"),
        (without(b"sec-websocket-version"), 426, "13"),
        (without(b"sec-websocket-version", b"8"), 426, "13"),
        (without(b"sec-websocket-key"), 400, "sec-websocket-key"),
        (without(b"sec-websocket-key", KEY, KEY), 400, "sec-websocket-key"),
        (without(b"sec-websocket-key", b"c2hvcnQ="), 400, "sec-websocket-key"),
        (without(b"sec-websocket-key", b"no base64 at all!"), 400, "sec-websocket-key"),
    ],
)
def test_what_is_no_handshake_is_told_what_lacks(headers, status, named):
    with pytest.raises(GatewayError) as caught:
        accept(headers)
    assert caught.value.status == status and named in caught.value.message


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://gateway:8080", "gateway:8080", True),
        ("https://gateway", "gateway", True),
        ("https://gateway", "gateway:443", True),
        ("http://Gateway:80", "GATEWAY", True),
        ("http://[2001:db8::1]:8080", "[2001:db8::1]:8080", True),
        ("http://localhost:3000", "gateway:8080", True),
        ("http://127.0.0.1:3000", "gateway:8080", True),
        ("http://[::1]", "gateway:8080", True),
        ("https://app.example", "gateway:8080", True),
        ("https://app.example:444", "gateway:8080", False),
        ("http://gateway:8081", "gateway:8080", False),
        ("http://gateway", "gateway:8080", False),
        ("https://evil.example", "gateway:8080", False),
        ("http://localhost.evil.example", "gateway:8080", False),
        ("http://gateway:8080.evil.example", "gateway:8080", False),
        ("null", "gateway:8080", False),
        ("file://", "gateway:8080", False),
        ("http://[broken", "gateway:8080", False),
        ("", "", False),
    ],
)
def test_pages_from_elsewhere_are_kept_out(origin, host, allowed):
    headers = [*without(b"host", host.encode()), (b"origin", origin.encode())]
    if allowed:
        assert accept(headers, {"https://app.example"})
    else:
        with pytest.raises(GatewayError) as caught:
            accept(headers, {"https://app.example"})
        assert caught.value.status == 403


def test_two_origins_are_none_of_ours():
    twice = [(b"origin", b"http://localhost")] * 2
    with pytest.raises(GatewayError):
        accept([*RIGHT, *twice])
