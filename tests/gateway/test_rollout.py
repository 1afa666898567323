"""A configuration read again while serving."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from gateway.control import ControlError, replica_status
from gateway.replica_files import Finding, Looked
from tests.gateway.supervised import MODEL, SERVER, supervised, until


async def reread(running, text):
    running.file.write_text(text)
    return await running.supervisor.reread()


async def served(running):
    """The replicas that a worker knows, by its own word."""
    (worker,) = running.supervisor.workers
    (model,) = (await worker.call("status"))["models"]
    return [replica["name"] for replica in model["replicas"]]


async def serves(path):
    try:
        return (await replica_status(f"unix:{path}")).state == "ready"
    except ControlError:
        return False


async def test_replicas_come_and_go(tmp_path):
    async with supervised(tmp_path) as running:
        supervisor = running.supervisor
        kept = supervisor.replicas["r-0"].child.pid
        gone = supervisor.replicas["r-1"].child.pid
        text = (
            SERVER
            + MODEL.replace("count = 2", "count = 1")
            + ('[[models.replicas]]\nname = "s"\nspawn = "r.toml"\nweight = 2\n')
        )
        assert await reread(running, text) == ["replica s is new", "replica r-1 is gone"]
        assert set(supervisor.replicas) == {"r-0", "s"}
        assert supervisor.replicas["r-0"].child.pid == kept
        assert await served(running) == ["r-0", "s"]
        with pytest.raises(ProcessLookupError):
            os.kill(gone, 0)
        # It had been drained before it went.
        (worker,) = supervisor.workers
        assert ["drain", {"replica": "r-1"}] in (await worker.call("status"))["told"]
        assert supervisor.operations.amendments() == []
        # A worker that starts anew serves the new configuration.
        os.kill(worker.child.pid, signal.SIGKILL)
        await until(lambda: worker.child.restarts == 1 and worker.ready)
        assert await served(running) == ["r-0", "s"]


async def test_a_replica_whose_file_has_changed_is_replaced(tmp_path):
    async with supervised(tmp_path) as running:
        supervisor = running.supervisor
        pids = {name: replica.child.pid for name, replica in supervisor.replicas.items()}
        await supervisor.operations.drain("r-1")
        (tmp_path / "r.toml").write_text("ready\nthreads = 2\n")
        found = await reread(running, running.file.read_text())
        assert found == ["replica r-0 was replaced", "replica r-1 was replaced"]
        for name, replica in supervisor.replicas.items():
            assert replica.child.pid not in (0, pids[name])
        # What an operator had drained stays so.
        assert supervisor.operations.amendments() == [("drain", {"replica": "r-1"})]


async def test_a_new_replica_that_cannot_start_changes_nothing(tmp_path):
    (tmp_path / "bad.toml").write_text("die there is no such model\n")
    async with supervised(tmp_path) as running:
        supervisor = running.supervisor
        text = SERVER + MODEL.replace("count = 2", "count = 1")
        text += '[[models.replicas]]\nname = "s"\nspawn = "bad.toml"\n'
        with pytest.raises(
            ControlError, match=r"s cannot start: .*status 1 \(there is no such model"
        ):
            await reread(running, text)
        assert set(supervisor.replicas) == {"r-0", "r-1"} and await served(running) == [
            "r-0",
            "r-1",
        ]
        assert supervisor.operations.amendments() == []
        assert supervisor.events.since()[-1]["text"].startswith("failed: s cannot start")


async def test_what_can_be_seen_to_be_wrong_is_refused_before_anything_changes(tmp_path):
    asked = []

    def look_at(config, names):
        asked.append(set(names))
        wrong = [Finding(tmp_path / "r.toml", "class: there is no module 'x'")] if names else []
        return Looked(wrong, {})

    async with supervised(tmp_path, look_at=look_at) as running:
        before = {name: each.child.pid for name, each in running.supervisor.replicas.items()}
        (tmp_path / "r.toml").write_text("another\n")
        (tmp_path / "s.toml").write_text("ready\n")
        more = '[[models.replicas]]\nname = "s"\nspawn = "s.toml"\n'
        with pytest.raises(ControlError, match=r"r\.toml: class: there is no module 'x'") as caught:
            await reread(running, SERVER + MODEL + more)
        assert caught.value.status == 400 and asked == [{"r-0", "r-1", "s"}]
        after = {name: each.child.pid for name, each in running.supervisor.replicas.items()}
        assert after == before


async def test_a_changed_file_that_does_not_work_stops_at_the_first_replica(tmp_path):
    async with supervised(tmp_path) as running:
        supervisor = running.supervisor
        kept = {name: each.child.pid for name, each in supervisor.replicas.items()}
        (tmp_path / "r.toml").write_text("die a bad key\n")
        with pytest.raises(ControlError, match="r-0 cannot start: its process exited"):
            await supervisor.reread()
        # The old processes serve on, r-0 too.
        assert {name: each.child.pid for name, each in supervisor.replicas.items()} == kept
        (tmp_path / "r.toml").write_text("ready\n# mended\n")
        found = await supervisor.reread()
        assert found == ["replica r-0 was replaced", "replica r-1 was replaced"]
        assert supervisor.operations.amendments() == []


async def test_new_processes_take_the_places_of_old_ones_one_by_one(tmp_path):
    async with supervised(tmp_path) as running:
        supervisor = running.supervisor
        (worker,) = supervisor.workers
        await supervisor.operations.drain("r-1")
        for turn in (1, 2):
            old = {name: each.child.pid for name, each in supervisor.replicas.items()}
            answer = await supervisor.operations.replace("m")
            assert answer == {"model": "m", "replaced": ["r-0", "r-1"]}
            assert set(supervisor.replicas) == {"r-0", "r-1"}
            for name, replica in supervisor.replicas.items():
                assert replica.child.pid not in (0, old[name])
                with pytest.raises(ProcessLookupError):
                    os.kill(old[name], 0)
                assert await serves(supervisor.runtime / f"{name}.{turn}.sock")
        assert await served(running) == ["r-0", "r-1"]
        # What an operator had drained is drained again in each of its lives.
        told = (await worker.call("status"))["told"]
        assert told.count(["drain", {"replica": "r-1"}]) == 3
        # The file read again changes nothing, nor does a worker that starts anew.
        assert await supervisor.reread() == []
        os.kill(worker.child.pid, signal.SIGKILL)
        await until(lambda: worker.child.restarts == 1 and worker.ready)
        # A replaced one that dies comes back where it was.
        os.kill(supervisor.replicas["r-0"].child.pid, signal.SIGKILL)
        await until(lambda: serves(supervisor.runtime / "r-0.2.sock"))


async def test_where_there_is_no_room_for_two_the_old_process_goes_first(tmp_path):
    model = MODEL + 'replace = "in_place"\n'
    async with supervised(tmp_path, config=model) as running:
        supervisor = running.supervisor
        old = {name: each.child.pid for name, each in supervisor.replicas.items()}
        await supervisor.operations.replace("m")
        assert all(supervisor.replicas[name].child.pid != pid for name, pid in old.items())
        assert await serves(supervisor.runtime / "r-0.sock")
        (worker,) = supervisor.workers
        assert ["drain", {"replica": "r-0"}] in (await worker.call("status"))["told"]


async def test_only_spawned_replicas_are_replaced(tmp_path):
    text = '[[models]]\nname = "away"\n[[models.replicas]]\nname = "a"\naddress = "tcp:h:1"\n'
    async with supervised(tmp_path, config=MODEL + text) as running:
        with pytest.raises(ControlError, match="no replica that this gateway spawns"):
            await running.supervisor.operations.replace("away")
        with pytest.raises(ControlError, match="there is no model 'x'"):
            await running.supervisor.operations.replace("x")


async def test_a_stop_in_the_middle_of_it_leaves_nothing(tmp_path):
    (tmp_path / "slow.toml").write_text("loading\n")
    async with supervised(tmp_path) as running:
        text = SERVER + MODEL + '[[models.replicas]]\nname = "s"\nspawn = "slow.toml"\n'
        running.file.write_text(text)
        rollout = asyncio.create_task(running.supervisor.reread())
        await until(lambda: (running.supervisor.runtime / "s.sock").exists())
        pid = running.supervisor.replicas["s"].child.pid
    with pytest.raises(ControlError, match="the gateway is stopping"):
        await rollout
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_no_change_is_no_change(tmp_path):
    async with supervised(tmp_path) as running:
        pids = {name: each.child.pid for name, each in running.supervisor.replicas.items()}
        assert await running.supervisor.reread() == []
        after = {name: each.child.pid for name, each in running.supervisor.replicas.items()}
        assert after == pids


async def test_other_limits_reach_the_workers(tmp_path):
    async with supervised(tmp_path) as running:
        text = SERVER + MODEL.replace('name = "m"', 'name = "m"\nslo_ms = 9')
        assert await reread(running, text) == ["model m has other limits"]
        (worker,) = running.supervisor.workers
        assert (await worker.call("status"))["models"][0]["slo_ms"] == 9


WRONG = [
    (SERVER + MODEL + "wieght = 2\n", r'serve.toml:11: .*did you mean "weight"'),
    (SERVER + "workers = 2\n" + MODEL, r"serve.toml:4: server.workers: cannot change from 1"),
    (SERVER + 'admin_key = "12345678"\n' + MODEL, "admin_key: cannot change while serving"),
    ("", "there is nothing to serve"),
]


async def test_a_bad_file_changes_nothing(tmp_path):
    async with supervised(tmp_path) as running:
        before = running.supervisor.settings
        for text, message in WRONG:
            with pytest.raises(ControlError, match=message) as caught:
                await reread(running, text)
            assert caught.value.status == 400
            assert running.supervisor.settings is before
            assert running.supervisor.events.since()[-1]["text"].startswith("refused: ")
        assert await served(running) == ["r-0", "r-1"]


async def test_sighup_reads_the_file_again(tmp_path, caplog):
    caplog.set_level("INFO")
    async with supervised(tmp_path) as running:
        running.file.write_text("nonsense")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "the configuration stays as it was" in caplog.text)
        running.file.write_text(SERVER + MODEL.replace("count = 2", "count = 1"))
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: "replica r-1 is gone" in caplog.text)
        assert set(running.supervisor.replicas) == {"r-0"}


async def test_files_that_are_watched_are_read_again_when_they_change(tmp_path, caplog):
    caplog.set_level("INFO")
    watched = SERVER + "watch_s = 0.02\n"
    async with supervised(tmp_path, server="watch_s = 0.02\n") as running:
        running.file.write_text(watched + MODEL.replace("count = 2", "count = 1"))
        await until(lambda: "replica r-1 is gone" in caplog.text)
        before = running.supervisor.settings
        running.file.write_text(watched + MODEL + "wieght = 2\n")
        await until(lambda: 'did you mean "weight"' in caplog.text)
        assert running.supervisor.settings is before
        running.file.unlink()
        await until(lambda: "cannot read it" in caplog.text)
        # As a mounted ConfigMap changes: another file under the same name.
        (tmp_path / "next").write_text(watched + MODEL.replace('"m"', '"m"\nslo_ms = 9'))
        (tmp_path / "next").rename(running.file)
        await until(lambda: "model m has other limits" in caplog.text)
        (tmp_path / "r.toml").write_text("ready again\n")
        await until(lambda: "replica r-0 was replaced" in caplog.text)
        running.file.write_text(SERVER + MODEL)
        await until(lambda: running.supervisor.config.server.watch_s is None)


async def test_a_change_of_keys_and_routes_is_told(tmp_path):
    keys = "".join(f'[[keys]]\nname = "k{n}"\nkey_sha256 = ["{n:064x}"]\n' for n in range(8))
    async with supervised(tmp_path, config=MODEL + keys) as running:
        other = keys.replace('name = "k3"', 'name = "k3"\npriority = 2')
        assert await reread(running, SERVER + MODEL + other) == ["keys changed: k3"]
        told = await reread(running, SERVER + MODEL)
        assert told == ["keys gone: k0, k1, k2, k3, k4 and 3 more"]
        assert await reread(running, SERVER + MODEL) == []
