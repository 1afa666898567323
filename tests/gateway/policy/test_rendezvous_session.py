"""Which session a request names: the configured order of sources, and what is never one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.session import DEFAULT_SOURCES, SessionSources


def key(sources=DEFAULT_SOURCES, query="", body=None, **headers):
    table = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return SessionSources(sources).key(table.get, query, body)


def test_the_order_of_the_sources_decides():
    body = {"prompt_cache_key": "p", "user": "u", "conversation": {"id": "c"}}
    everything = {"x_session_id": "h", "cookie": "a=b; session=k"}
    assert key(body=body, query="session=q", **everything) == "header:x-session-id=h"
    assert key(body=body, query="session=q", cookie="a=b; session=k") == "cookie:session=k"
    assert key(body=body, query="a=1&session=q%20x") == "query:session=q x"
    assert key(body=body) == "body:prompt_cache_key=p"
    assert key(body={"user": "u", "conversation": "c"}) == "body:user=u"
    assert key(body={"conversation": {"id": "c"}}) == "body:conversation=c"
    assert key(body={"conversation": "c"}) == "body:conversation=c"
    assert key(("body:user", "header:x-session-id"), body=body, **everything) == "body:user=u"


def test_no_source_no_session():
    assert key() is None
    assert key(body={"user": None, "prompt_cache_key": ["x"], "conversation": {}}) is None
    assert key(x_session_id="  ", cookie="session=", query="session=&sessions=1") is None
    assert key(authorization="Bearer x", x_forwarded_for="10.0.0.1") is None
    assert key(body={"user": True}) is None


@pytest.mark.parametrize(
    "source",
    ["header:Authorization", "header:x-forwarded-for", "header:X-API-Key", "header:cookie"],
)
def test_who_the_client_is_never_names_a_session(source):
    with pytest.raises(ValueError, match="says who the client is"):
        SessionSources([source])


@pytest.mark.parametrize("source", ["x-session-id", "address:peer", "header:", "cookie"])
def test_a_bad_source_is_told_what_is_expected(source):
    with pytest.raises(ValueError, match="header:NAME"):
        SessionSources([source])


def test_a_number_is_a_name_too():
    assert key(body={"user": 17}) == "body:user=17"
    assert key(body={"user": 10**5000}) is None  # no name: what no client means


@given(st.text(min_size=1, max_size=4000))
def test_keys_are_bounded_and_tell_sessions_apart(text):
    found = key(("body:user",), body={"user": text})
    assert found is not None and len(found) <= 128
    assert found != key(("body:user",), body={"user": text + "x"})


def test_the_body_is_needed_only_where_a_source_is_in_it():
    assert SessionSources().needs_body
    assert not SessionSources(["header:x-session-id", "cookie:s", "query:s"]).needs_body
