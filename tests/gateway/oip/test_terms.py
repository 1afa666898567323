"""Headers of an infer call."""

from __future__ import annotations

import pytest

from gateway.errors import BadRequest
from gateway.oip.terms import MAX_ID, PLAIN, read_terms

LENGTH = b"inference-header-content-length"


def test_a_request_without_any():
    assert read_terms([(b"host", b"h"), (b"content-type", b"x")]) is PLAIN
    assert (None, b"", None, float("inf"), 0, False, b"", None) == PLAIN


def test_all_of_them():
    terms = read_terms(
        [
            (LENGTH, b"12"),
            (b"x-request-id", b"r-1"),
            (b"x-session-id", b"s\xe9"),
            (b"x-deadline-ms", b"250.5"),
            (b"x-priority", b"-2"),
            (b"x-timing", b"1"),
            (b"x-model-version", b"300-1a2b3c4d"),
            (b"accept-encoding", b"gzip"),
        ]
    )
    head = (12, b"x-request-id: r-1\r\n", "sé", 0.2505, -2, True, b"gzip")
    assert terms == (*head, "300-1a2b3c4d")


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        # What libraries send of their own accord is no wish.
        (b"gzip, deflate", b""),
        (b"gzip, deflate, br, zstd", b""),
        (b"identity", b""),
        (b"*", b""),
        (b"br", b""),
    ],
)
def test_only_one_coding_alone_asks_for_compression(value, coding):
    assert read_terms([(b"accept-encoding", value)]).coding == coding


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (LENGTH, b""),
        (LENGTH, b"-1"),
        (LENGTH, b"+1"),
        (LENGTH, b"1.0"),
        (LENGTH, b"0x10"),
        (LENGTH, b"1 2"),
        (LENGTH, b"12a"),
        (LENGTH, "١".encode()),
        (LENGTH, b"9" * 16),
        (b"x-deadline-ms", b"0"),
        (b"x-deadline-ms", b"0.0"),
        (b"x-deadline-ms", b"-5"),
        (b"x-deadline-ms", b"1e3"),
        (b"x-deadline-ms", b"nan"),
        (b"x-deadline-ms", b"inf"),
        (b"x-deadline-ms", b""),
        (b"x-deadline-ms", b"."),
        (b"x-deadline-ms", b"1.2.3"),
        (b"x-priority", b"high"),
        (b"x-priority", b""),
        (b"x-priority", b"--1"),
        (b"x-priority", b"101"),
        (b"x-priority", b"1.0"),
        (b"x-timing", b"yes"),
        (b"x-timing", b""),
        (b"x-request-id", b"x" * (MAX_ID + 1)),
        (b"x-session-id", b"x" * (MAX_ID + 1)),
    ],
)
def test_values_that_are_not_understood_are_refused_by_name(name, value):
    with pytest.raises(BadRequest) as caught:
        read_terms([(name, value)])
    assert caught.value.message.startswith(f"header {name.decode()} is ")
    assert caught.value.param == name.decode()


@pytest.mark.parametrize("value", [b"0", b"00", b"7", b"9" * 15])
def test_lengths_that_are(value):
    assert read_terms([(LENGTH, value)]).header_length == int(value)


def test_headers_given_twice():
    twice = [(LENGTH, b"1"), (LENGTH, b"2")]
    with pytest.raises(BadRequest, match="given twice"):
        read_terms(twice)
    assert read_terms([(LENGTH, b"1"), (LENGTH, b"1")]).header_length == 1


def test_empty_identifiers_are_none():
    terms = read_terms([(b"x-request-id", b""), (b"x-session-id", b"")])
    assert (terms.echo, terms.session) == (b"", None)
