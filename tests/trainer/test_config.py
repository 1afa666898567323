"""Configuration: every wrong key is said at once, with its place and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.config import describe, load, parse
from trainer.errors import ConfigError

GOOD = """
run = "r"
steps = 10

[model]
class = "m:M"
config = { width = 4 }

[data]
class = "d:D"
batch_size = 8

[optimizer]
lr = 0.1
"""


def problem(content: str, *overrides: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(content, Path("t.toml"), environ or {}, overrides)
    return str(caught.value)


def test_the_example_is_right():
    config = load(Path("examples/digits/train.toml"), {}).config
    assert config.model.config == {"width": 256}
    assert str(config.publish.require) == "accuracy >= 0.97"
    assert config.parallel.dp_shard == -1


def test_the_later_source_wins():
    environ = {"PENSTOCK_TRAINER_OPTIMIZER_LR": "0.2", "PENSTOCK_TRAINER_STEPS": "20"}
    config = parse(GOOD, Path("t.toml"), environ, ["optimizer.lr=0.3", "model.config.depth=2"])
    assert (config.optimizer.lr, config.steps) == (0.3, 20)
    assert config.model.config == {"width": 4, "depth": 2}


def test_text_needs_no_quotes_in_an_argument():
    config = parse(GOOD, Path("t.toml"), {}, ["run=2024", "publish.channel=stable"])
    assert (config.run, config.publish.channel) == ("2024", "stable")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stepz=3"], ['did you mean "steps"?', "argument 'stepz=3'"]),
        (["optimizer.speed=3"], ["optimizer.speed", "known here: name, lr"]),
        (["optimizer.lr=-1"], ["optimizer.lr", "a number above 0", "-1"]),
        (["steps=many"], ["steps", "a whole number from 1", "'many'"]),
        (["steps=true"], ["a whole number from 1"]),
        (["data=3"], ["expected a table with the keys class, config, batch_size"]),
        (["steps.now=3"], ["steps is no table"]),
        (["steps"], ["expected KEY=VALUE"]),
        (["optimizer.momentum=0.5"], ['only with optimizer.name = "sgd"']),
        (["schedule.decay=5"], ['only with schedule.name = "wsd"']),
        (["parallel.dp_replicate=-1"], ["parallel.dp_replicate", "-1 here or in dp_shard"]),
        (["publish.channel=x", "publish.require=accuracy is good"], ["'accuracy is good' is no"]),
        (["publish.require=accuracy > 0.9"], ["publish.channel"]),
        (["parallel.pp=2"], ["data.micro_batch", "a pipeline works on micro-batches"]),
        (["parallel.chunks=3"], ["parallel.chunks", "parallel.pp above 1"]),
        (["parallel.layers=[1, -1]"], ["whole numbers, such as [8, 8]"]),
        (["lora.alpha=8"], ["lora.alpha", 'only with "rank"']),
        (["spike.window=8"], ["spike.window", 'only with "factor"']),
        (["optimizer.rules={ a = { speed = 1 } }"], ["'a' must have lr, weight_decay or both"]),
        (["metrics.prometheus=here"], ['"127.0.0.1:9400"']),
        (["checkpoint.mode=later"], ["one of async, sync"]),
        (["checkpoint.shard_size=big"], ['"512 MiB"']),
        (["model.class=noclass"], ['"module:Class"']),
    ],
)
def test_what_is_wrong_is_named(overrides, said):
    found = problem(GOOD, *overrides)
    assert all(part in found for part in said), found


def test_every_problem_is_listed_with_its_line():
    content = GOOD.replace("lr = 0.1", "lrr = 0.1\neps = 2.0").replace("batch_size = 8", "")
    found = problem(content).splitlines()
    assert found == [
        "t.toml:9: data.batch_size: missing; expected a whole number from 1",
        't.toml:14: optimizer.lrr: unknown key; did you mean "lr"?',
        "t.toml:15: optimizer.eps: expected a number above 0 up to 1, got 2.0",
        "t.toml:13: optimizer.lr: missing; expected a number above 0 up to 1000",
    ]


def test_a_model_is_a_class_or_what_it_starts_from():
    bare = GOOD.replace('class = "m:M"\nconfig = { width = 4 }', "")
    assert 'model.class: missing; expected a class as "module:Class", or "init"' in problem(bare)
    assert parse(bare, Path("t.toml"), {}, ["model.init=x"]).model.init == "x"
    assert "model.config" in problem(bare, "model.init=x", "model.config.width=3")


def test_wrong_environment_variables_are_named():
    assert "PENSTOCK_TRAINER_STEPZ" in problem(GOOD, environ={"PENSTOCK_TRAINER_STEPZ": "3"})
    found = problem(GOOD, environ={"PENSTOCK_TRAINER_STEPS": "-3"})
    assert found.startswith("environment variable PENSTOCK_TRAINER_STEPS: steps: expected")


def test_what_is_not_toml_is_said_with_its_line():
    assert "t.toml" in (found := problem("steps = = 3\nrun = 1")) and "line 1" in found
    with pytest.raises(ConfigError, match=r"no\.toml: cannot be read: No such file"):
        load(Path("no.toml"), {})


def test_help_shows_every_key():
    text = describe()
    for name in ("dp_shard", "on_failure", "require", "keep_every", "shard_size"):
        assert f"    {name}" in text


@pytest.mark.parametrize("argv", [["--help"], ["publish", "--help"], ["prune", "--help"]])
def test_help_has_an_example(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    assert "python -m trainer" in capsys.readouterr().out.split("example")[-1]


def test_the_command_line_says_errors_in_one_line(tmp_path, capsys):
    (tmp_path / "t.toml").write_text(GOOD)
    assert main([str(tmp_path / "t.toml"), "stepz=3"]) == 2
    assert capsys.readouterr().err.startswith("error: argument 'stepz=3': stepz: unknown key")
    assert main([str(tmp_path / "t.toml")]) == 2
    assert "there is no module 'm'" in capsys.readouterr().err
