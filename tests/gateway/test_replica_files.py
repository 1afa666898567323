"""`check` looks into the files of spawned replicas, and runs none of them."""

from __future__ import annotations

import pytest

from gateway.cli import main

GATEWAY = '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\nspawn = "r.toml"\n'
MODULE = "import torch\nraise RuntimeError('this must not run')\nclass Good: ...\n"


@pytest.fixture
def check(tmp_path, capsys):
    """(exit status, what was said) of a check of a gateway with this replica file."""
    (tmp_path / "serve.toml").write_text(GATEWAY)
    (tmp_path / "served.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("class Good(:\n")
    channels = tmp_path / "run" / "channels"
    channels.mkdir(parents=True)
    (channels / "stable.json").write_text("{}")

    def run(replica: str) -> tuple[int, str]:
        (tmp_path / "r.toml").write_text(replica)
        status = main(["check", str(tmp_path / "serve.toml")])
        out, err = capsys.readouterr()
        return status, out + err

    return run


@pytest.mark.parametrize(
    "replica",
    ['model = "m"\nclass = "served:Good"', 'model = "m"\nrun = "run"\ncode = "."'],
)
def test_a_good_file_is_good(check, replica):
    status, said = check(replica)
    assert status == 0 and "r.toml:" not in said


@pytest.mark.parametrize(
    ("replica", "said"),
    [
        ('model = "m"\nclass =', "r.toml"),
        ('model = "m"\nclass = "served:Good"\nthreds = 1', "threads"),
        ('model = "other"\nclass = "served:Good"', 'the gateway wants "m"'),
        ('model = "m"\nclass = "served:Bad"', "has no 'Bad'"),
        ('model = "m"\nclass = "nowhere.served:Bad"', "no module 'nowhere.served'"),
        ('model = "m"\nclass = "broken:Good"', "is no Python"),
        ('model = "m"\nrun = "run"\ncode = "elsewhere"', "there is no folder"),
    ],
)
def test_what_would_not_serve_is_wrong(check, replica, said):
    status, text = check(replica)
    assert status == 2 and said in text and "1 problem" in text


@pytest.mark.parametrize(
    "module",
    [
        "from elsewhere import *",
        "def __getattr__(name): ...",
        "globals()['Made'] = object",
        "Made: type = object",
        "Other, Made = object, object",
        "try:\n    import x as Made\nexcept ImportError: ...",
    ],
)
def test_names_that_may_be_there_are_not_missed(check, tmp_path, module):
    (tmp_path / "made.py").write_text(module)
    assert check('model = "m"\nclass = "made:Made"')[0] == 0


def test_a_line_is_said_once(check):
    _, text = check('model = "m"\nkind = "tensorr"\nclass = "served:Good"')
    assert text.count("r.toml") == 1 and "r.toml:2: kind: expected one of" in text


def test_serve_starts_nothing_of_which_something_would_not_serve(check, tmp_path, capsys):
    check('model = "m"\nclass = "nowhere:Good"')
    assert main(["serve", str(tmp_path / "serve.toml")]) == 2
    said = capsys.readouterr().err
    assert "r.toml: class: there is no module 'nowhere'" in said
    assert said.endswith("nothing was started\n")


@pytest.mark.parametrize(
    ("program", "there"),
    [("{python}", True), ("sh", True), ("no-such-program", False), ("./serve.toml", False)],
)
def test_programs_of_http_replicas_are_looked_for(tmp_path, capsys, program, there):
    file = tmp_path / "serve.toml"
    file.write_text(
        '[[models]]\nname = "m"\n[[models.replicas]]\nname = "r"\nkind = "http"\n'
        f'command = ["{program}", "{{port}}"]\n'
    )
    assert main(["check", str(file)]) == (0 if there else 2)
    text = f'serve.toml: replica "r": command: there is no program "{program}"'
    assert (text in capsys.readouterr().err) is not there


@pytest.mark.parametrize(
    ("replica", "said"),
    [
        ('model = "m"\nrun = "none"', "there is no run at"),
        ('model = "m"\nrun = "run"\nchannel = "canary"', 'published to "canary" yet'),
    ],
)
def test_what_may_still_come_is_noted(check, replica, said):
    status, text = check(replica)
    assert status == 0 and said in text


@pytest.mark.parametrize(
    ("replica", "row"),
    [
        ('kind = "llm"\nrun = "run"', ("llm", "600000 ms", "requests")),
        ('kind = "tensor"\nrun = "run"', ("tensor", "30000 ms", "rows")),
        ('run = "run"', ("tensor", "30000 ms", "rows")),
    ],
)
def test_deadlines_are_those_of_the_kind_that_the_file_says(check, replica, row):
    status, said = check(f'model = "m"\n{replica}\n')
    assert status == 0 and all(part in said for part in row), said
