"""The commands: what they print, how they end, and what they do not load."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.gateway.supervised import supervised

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "digits" / "serve.toml"
VERBS = ["serve", "check", "schema", "status", "drain", "undrain", "weight", "reload", "replace"]
VERBS += ["promote", "rollback"]
KEY = "correct-horse"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("PENSTOCK_SERVER__ADMIN", raising=False)
    monkeypatch.delenv("PENSTOCK_SERVER__ADMIN_KEY", raising=False)


# ------------------------------------------------------------------------------------------ help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  python -m gateway {verb}" in capsys.readouterr().out


def test_the_verbs_are_listed_without_the_internal_one(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"\n    {verb} " in listed for verb in VERBS)
    assert "worker" not in listed.split("verbs:")[1].replace("workers", "")


@pytest.mark.parametrize("argv", [[], ["serves"], ["drain"], ["weight", "r", "x"], ["reload"]])
def test_a_wrong_command_line_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2


# ---------------------------------------------------------------------------------------- check


def test_check_shows_what_would_be_served(capsys):
    assert main(["check", str(EXAMPLE), "--set", "models.digits.slo_ms=50"]) == 0
    out = capsys.readouterr().out
    assert "good; 1 worker on 127.0.0.1:8080, admin on 127.0.0.1:8081" in out
    assert "digits-1: native, spawned from digits.replica.toml" in out and "50 ms" in out


def test_check_says_what_is_wrong_and_ends_with_2(tmp_path, capsys):
    file = tmp_path / "serve.toml"
    file.write_text('[server]\nlisten = 80\n[[models]]\nnaem = "m"\n')
    assert main(["check", str(file)]) == 2
    err = capsys.readouterr().err
    assert f"{file}:2: server.listen: expected an address" in err
    assert f'{file}:4: models[0].naem: unknown key; did you mean "name"?' in err
    assert "3 problems" in err


def test_schema_describes_every_key(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    model = schema["properties"]["models"]["items"]
    assert model["required"] == ["name"] and model["additionalProperties"] is False
    replica = model["properties"]["replicas"]["items"]["properties"]
    assert replica["count"]["minimum"] == 1 and replica["kind"]["enum"] == ["native", "http"]
    assert schema["properties"]["server"]["properties"]["workers"]["default"] == 1


# ---------------------------------------------------------------------------------------- serve


def test_serve_refuses_a_bad_file_before_anything_starts(tmp_path, capsys):
    file = tmp_path / "serve.toml"
    file.write_text("[server]\nworkers = 0\n")
    assert main(["serve", str(file)]) == 2
    assert f"{file}:2: server.workers" in capsys.readouterr().err


def test_serve_loads_nothing_large_before_the_workers_run():
    code = "import sys, gateway.cli_serve; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = set(found.stdout.split())
    assert "gateway.supervisor" in loaded
    assert not loaded & {
        "aiohttp", "prometheus_client", "uvloop", "rich", "torch", "gateway.worker"
    }  # fmt: skip


# -------------------------------------------------------------------------------------- operating


async def command(running, *argv, key=None):
    """In a thread: it blocks, and the supervisor that it asks runs in this one."""
    flags = ["--admin", running.supervisor.admin, *(["--key", key] if key else [])]
    return await asyncio.to_thread(main, [*argv, *flags])


async def test_status_shows_workers_models_and_replicas(tmp_path, capsys):
    async with supervised(tmp_path) as running:
        assert await command(running, "status") == 0
        out = capsys.readouterr().out
        for word in ("penstock 1.2.3 serving", "worker-0", "r-1", "1-a", "accepted"):
            assert word in out
        assert await command(running, "status", "--json") == 0
        status = json.loads(capsys.readouterr().out)
        assert status["models"][0]["replicas"][1]["name"] == "r-1"


async def test_status_can_be_watched_through_a_pipe(tmp_path):
    async with supervised(tmp_path) as running:
        command = [sys.executable, "-m", "gateway", "status", "--watch", "0.1"]
        watching = await asyncio.create_subprocess_exec(
            *command, "--admin", running.supervisor.admin, stdout=subprocess.PIPE, cwd=ROOT
        )
        heads = 0
        while heads < 2:
            line = await watching.stdout.readline()
            assert line, "it ended"
            heads += line.startswith(b"penstock 1.2.3 serving")
        watching.kill()
        await watching.wait()


async def test_switches(tmp_path, capsys):
    async with supervised(tmp_path) as running:
        assert await command(running, "drain", "r-0", "--wait", "5") == 0
        assert await command(running, "undrain", "r-0") == 0
        assert await command(running, "weight", "r-1", "0.5") == 0
        assert await command(running, "reload", "--file") == 0
        assert capsys.readouterr().out.splitlines() == [
            "r-0 is drained: it gets nothing new",
            "r-0 has nothing in flight",
            "r-0 is used again",
            "r-1 has weight 0.5",
            "read again; nothing has changed",
        ]


async def test_reload_and_rollback(tmp_path, capsys):
    async with supervised(tmp_path) as running:
        assert await command(running, "reload", "m") == 0
        assert capsys.readouterr().out.splitlines() == [
            "r-0: asked; serves 1-a, load → 2-b",
            "r-1: asked; serves 1-a, load → 2-b",
        ]
        assert await command(running, "replace", "m") == 0
        lines = ["r-0 has a new process", "r-1 has a new process"]
        assert capsys.readouterr().out.splitlines() == lines
        assert await command(running, "rollback", "m") == 1
        assert "rollback: no replica follows a channel" in capsys.readouterr().err
    tmp_path.joinpath("r.toml").write_text("ready 1-a 2-b\n")
    async with supervised(tmp_path) as running:
        assert await command(running, "rollback", "m", "--from", "2") == 0
        assert capsys.readouterr().out.splitlines() == [
            "m goes back from 2-b",
            "r-0: asked; serves 1-a, idle",
            "r-1: asked; serves 1-a, idle",
        ]
        assert await command(running, "rollback", "m") == 1
        assert "rollback: rollback failed on r-0: nothing to go back to" in capsys.readouterr().err


async def test_what_the_gateway_refuses_is_said_and_ends_with_1(tmp_path, capsys):
    async with supervised(tmp_path) as running:
        for argv, message in [
            (["drain", "x"], "drain: there is no replica 'x'; known: r-0, r-1"),
            (["reload", "x"], "reload: there is no model 'x'; known: m"),
            (["weight", "r-0", "-1"], "weight: expected a number from 0"),
        ]:
            assert await command(running, *argv) == 1
            assert message in capsys.readouterr().err
        running.file.write_text("[server]\nworkers = 3\n")
        assert await command(running, "reload", "--file") == 1
        assert "there is nothing to serve" in capsys.readouterr().err


async def test_the_key_comes_from_a_flag_a_file_or_the_environment(tmp_path, capsys, monkeypatch):
    async with supervised(tmp_path, server=f'admin_key = "{KEY}"\n') as running:
        assert await command(running, "status") == 1
        assert "status: send the key of server.admin_key" in capsys.readouterr().err
        assert await command(running, "status", key=KEY) == 0
        assert await command(running, "status", "--config", str(running.file)) == 0
        monkeypatch.setenv("PENSTOCK_SERVER__ADMIN_KEY", KEY)
        monkeypatch.setenv("PENSTOCK_SERVER__ADMIN", running.supervisor.admin)
        assert await asyncio.to_thread(main, ["status"]) == 0


async def test_an_admin_listener_on_a_unix_socket(tmp_path):
    admin = f"unix:{tmp_path}/admin.sock"
    head = f'[server]\nlisten = "127.0.0.1:0"\nadmin = "{admin}"\n'
    async with supervised(tmp_path, head=head) as running:
        assert running.supervisor.admin == admin
        assert await command(running, "status") == 0


def test_no_gateway_there_is_said(capsys):
    assert main(["status", "--admin", "127.0.0.1:1"]) == 1
    err = capsys.readouterr().err
    assert "no gateway answers at 127.0.0.1:1" in err and "is it running?" in err
    assert main(["status", "--admin", "nonsense"]) == 1
    assert "expected host:port or unix:/path" in capsys.readouterr().err


async def test_another_server_there_is_said(tmp_path, capsys):
    async with supervised(tmp_path) as running:
        argv = ["status", "--admin", running.supervisor.listen]
        assert await asyncio.to_thread(main, argv) == 1
        assert "is no gateway's admin listener" in capsys.readouterr().err
