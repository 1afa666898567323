"""A replica's file: what is wrong is said with its place and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.config import describe_keys, load, parse
from backends.errors import ConfigError

FILE = Path("/srv/a/replica.toml")
STATIC = 'model = "m"\nclass = "mod:Class"\n'


def wrong(text, environ=None, overrides=()):
    with pytest.raises(ConfigError) as found:
        parse(text, FILE, environ or {}, overrides)
    return found.value


def test_a_class_needs_nothing_else():
    config = parse(STATIC + "config = { width = 3 }", FILE, {})
    assert (config.model, config.class_, config.config) == ("m", "mod:Class", {"width": 3})
    assert (config.kind, config.slots, config.run) == ("tensor", 2, None)


def test_a_class_may_stand_in_another_folder():
    config = parse(STATIC + 'code = "/"', FILE, {})
    assert config.code is not None and config.folder(config.code) == Path("/")


def test_a_channel_of_a_run_relative_to_the_file():
    config = parse('model = "m"\nrun = "../run"\ncode = "/"', FILE, {})
    assert config.folder(config.run) == Path("/srv/run")
    assert (config.channel, config.class_) == ("stable", None)


def test_the_example_is_good():
    path = Path(__file__).parents[2] / "examples/digits/digits.replica.toml"
    config = load(path, {})
    assert (config.model, config.channel, config.threads) == ("digits", "stable", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STATIC + "thraeds = 1", ["replica.toml:3: thraeds", 'did you mean "threads"?']),
        (STATIC + "\n\nthreads = 0", [":5: threads", "a whole number from 1 to 1024", "got 0"]),
        (STATIC + "threads = true", ["a whole number"]),
        (STATIC + 'slots = "2"', ["slots", "got '2'"]),
        (STATIC + "probation_s = -1", ["probation_s", "a number from 0"]),
        (STATIC + 'kind = "llama"', ["kind", "one of tensor, llm"]),
        (STATIC + 'device = "tpu"', ["device", "cuda"]),
        (STATIC + "max_intake = nan", ["max_intake", "whole number"]),
        (STATIC + 'load_bytes_per_second = "fast"', ["load_bytes_per_second", "200 MiB"]),
        ('class = "mod:Class"', ["model", "missing"]),
        ('model = "m"\nclass = "mod.Class"', [":2: class", "module:Class"]),
        ('model = "m"', ['either "run"', '"class"']),
        (STATIC + 'run = "r"', ['either "run"', '"class"']),
        (STATIC + 'channel = "stable"', [":3: channel", "only with", "run"]),
        ('model = "m"\nrun = "r"\nconfig = {}', [":3: config", "only with", "class"]),
        ('model = "m"\nrun = "r"\ncode = "nowhere"', ["code", "/srv/a/nowhere"]),
        ("model = = 1", ["not TOML", "line 1"]),
        (STATIC + "[config]\nwidth = 1\n[threads]\n", ["threads", "a whole number"]),
    ],
)
def test_what_is_wrong_is_named(text, said):
    message = wrong(text).message
    assert message.startswith("/srv/a/replica.toml")
    for part in said:
        assert part in message


def test_environment_then_flags():
    config = parse(STATIC, FILE, {"PENSTOCK_REPLICA_THREADS": "2", "PENSTOCK_SERVER__X": "1"})
    assert config.threads == 2
    config = parse(STATIC, FILE, {"PENSTOCK_REPLICA_THREADS": "2"}, ["threads=3", "device=cpu"])
    assert (config.threads, config.device) == (3, "cpu")


def test_wrong_overrides_name_where_they_come_from():
    assert (
        "variable PENSTOCK_REPLICA_THREADS"
        in wrong(STATIC, {"PENSTOCK_REPLICA_THREADS": "x"}).message
    )
    assert "--set slots=0" in wrong(STATIC, {}, ["slots=0"]).message
    assert "KEY=VALUE" in wrong(STATIC, {}, ["slots"]).message
    assert "unknown key" in wrong(STATIC, {}, ["slits=1"]).message


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1000", 1000), ('"2 MiB"', 2**21), ('"3GB"', 3 * 10**9)]
)
def test_sizes(text, size):
    assert parse(STATIC + f"load_bytes_per_second = {text}", FILE, {}).load_bytes_per_second == size


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load(tmp_path / "none.toml", {})


def test_every_key_is_described():
    described = describe_keys()
    for key in ("model", "class", "probation_s", "versions", "hang_s"):
        assert f"  {key} " in described
