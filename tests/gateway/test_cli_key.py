"""`python -m gateway key`: what it prints lets exactly that key in."""

from __future__ import annotations

import hashlib
import io

import pytest

from gateway.cli import main
from gateway.config import ConfigError, parse

MODEL = """
[[models]]
name = "m"
[[models.replicas]]
name = "r"
address = "tcp:h:1"
"""


def read(text, tmp_path):
    return parse(MODEL + text, tmp_path / "serve.toml", {})


def test_the_key_is_shown_and_its_hash_is_written(tmp_path, capsys):
    assert main(["key", "app"]) == 0
    out, err = capsys.readouterr()
    made = err.splitlines()[0]
    (found,) = read(out, tmp_path).keys
    assert found.name == "app" and made not in out
    assert found.key_sha256 == (hashlib.sha256(made.encode()).hexdigest(),)


def test_an_existing_key_can_be_hashed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("an-existing-key-of-ours\n"))
    assert main(["key", "app", "--stdin"]) == 0
    out, err = capsys.readouterr()
    assert "an-existing" not in out + err
    digest = hashlib.sha256(b"an-existing-key-of-ours").hexdigest()
    assert read(out, tmp_path).keys[0].key_sha256 == (digest,)


@pytest.mark.parametrize("given", ["short", "with spaces in the middle of it"])
def test_a_weak_key_is_refused(capsys, monkeypatch, given):
    monkeypatch.setattr("sys.stdin", io.StringIO(given + "\n"))
    assert main(["key", "app", "--stdin"]) == 2
    assert "at least 16" in capsys.readouterr().err


def test_a_bad_name_is_refused(capsys):
    assert main(["key", "not a name"]) == 2
    assert "name: expected a name" in capsys.readouterr().err


A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('name = "a"\nkey_sha256 = ["abc"]', "SHA-256 of a key in hexadecimal"),
        (f'name = "a"\nkey_sha256 = ["{A}"]\nmodels = ["x"]', 'there is no model "x"; known: m'),
        (f'name = "a"\nkey_sha256 = ["{A}"]\nweight = 0', "weight: expected a number above 0"),
        (f'name = "a"\nkey_sha256 = ["{A}"]\nrequests_per_minute = 5', "unknown key"),
        (
            f'name = "a"\nkey_sha256 = ["{A}"]\n[[keys]]\nname = "a"\nkey_sha256 = ["{B}"]',
            'another key is named "a"',
        ),
        (
            f'name = "a"\nkey_sha256 = ["{A}"]\n[[keys]]\nname = "b"\nkey_sha256 = ["{A}"]',
            '"a" has the same key',
        ),
    ],
)
def test_wrong_keys_are_named_with_their_line(tmp_path, keys, said):
    with pytest.raises(ConfigError) as caught:
        read(f"[[keys]]\n{keys}\n", tmp_path)
    assert said in str(caught.value) and "serve.toml:" in str(caught.value)
