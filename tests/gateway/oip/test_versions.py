"""Versions by name and by step."""

from __future__ import annotations

import pytest

from gateway.oip.versions import find, steps


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("300-aa", "300-aa"),
        ("200", "200-cc"),
        ("0", "0-static"),
        # Two have that step: which one is meant, nobody knows.
        ("300", None),
        ("30", None),
        ("300-", None),
        ("", None),
        ("beta", "beta"),
    ],
)
def test_what_is_meant(said, found):
    assert find(said, ["300-aa", "300-bb", "200-cc", "0-static", "beta"]) == found


def test_no_two_have_one_name_and_numbers_are_read_as_numbers():
    versions = ["300-aa", "300-bb", "200-cc", "beta", "7"]
    assert steps(versions) == ["300", "300-bb", "200", "beta", "7"]
