"""Ranks as real processes that start in a tenth of a second, as torch is loaded once.

Python's fork server loads torch and the trainer, and forks each rank from there: a process of its
own, with its own signals, that `kill -9` ends. The test process hosts the store, as torchrun does.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson
import torch.distributed as dist

os.environ["OMP_NUM_THREADS"] = "1"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["trainer.process", "torch._dynamo", "torch.distributed.fsdp", "tests.trainer.tiny"]
)
# No assertion hangs on it: only a rank that never ends fails a test by it.
BOUND_S = 240.0


class Ranks:
    """`python -m trainer` with these arguments, on `count` ranks, each with its own log."""

    def __init__(
        self,
        folder: Path,
        argv: Sequence[str],
        count: int = 1,
        *,
        hurt: Mapping[int, Callable[[], None]] | None = None,
        store: dist.TCPStore | None = None,
        restarts: int = 0,
    ) -> None:
        self.store = store or dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank-{time.monotonic_ns()}-{rank}.log" for rank in range(count)]
        self.processes = []
        for rank in range(count):
            environ = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self.store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": str(restarts),
                "TORCH_CPP_LOG_LEVEL": "ERROR",
            }
            arguments = (list(argv), environ, self.logs[rank], (hurt or {}).get(rank))
            process = SERVER.Process(target=_be, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int]:
        """Exit statuses; a rank that a signal ended has minus its number."""
        until = time.monotonic() + BOUND_S
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        hang = [process for process in self.processes if process.exitcode is None]
        for process in hang:
            process.kill()
            process.join()
        assert not hang, f"{len(hang)} ranks never ended:\n{self.log()}"
        return [process.exitcode for process in self.processes]

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.processes)):
            os.kill(self.processes[rank].pid, number)

    def kill(self, *ranks: int) -> None:
        self.signal(signal.SIGKILL, *ranks)

    def log(self) -> str:
        return "\n".join(log.read_text() for log in self.logs if log.exists())


def _be(
    argv: list[str], environ: dict[str, str], log: Path, hurt: Callable[[], None] | None
) -> None:
    os.environ.update(environ)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    if hurt is not None:
        hurt()
    from trainer.__main__ import run

    run(argv)


def journal(run: Path, event: str) -> list[dict]:
    """The lines of metrics.jsonl with this event."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    found = []
    for line in lines:
        try:
            found.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue  # cut short by a kill, or still being written
    return [line for line in found if line["event"] == event]


def wait_for(condition: Callable[[], bool], ranks: Ranks) -> None:
    """Until it holds, or every rank has ended."""
    while not condition() and any(process.is_alive() for process in ranks.processes):
        time.sleep(0.001)


def weight_hashes(run: Path, step: int) -> dict[str, str]:
    """What identifies the weights, bit by bit."""
    from backends.checkpoint import Run

    manifest = Run(run).manifest(step)
    return {name: record.xxh3 for name, record in manifest.tensors.items()}


# ------------------------------------------------------------------------ hurts, for `Ranks(hurt=)`


def full_disk_at_step_10() -> None:
    """Every model file of step 10 finds the disk full."""
    from backends.checkpoint import Staging

    write = Staging.write_shard

    def fail(self, index, count, tensors):  # type: ignore[no-untyped-def]
        if self.step == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, index, count, tensors)

    Staging.write_shard = fail  # type: ignore[method-assign]


def full_disk_for_state() -> None:
    """torch's own writer finds the disk full at step 10."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    write = FileSystemWriter.write_data

    def fail(self, plan, planner):  # type: ignore[no-untyped-def]
        if "00000010" in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    FileSystemWriter.write_data = fail  # type: ignore[method-assign]


def die_after_rename() -> None:
    """The process ends just as step 15 has become visible, before LATEST names it."""
    from backends.checkpoint import Disk

    rename = Disk.rename

    def fatal(self, source, target):  # type: ignore[no-untyped-def]
        rename(self, source, target)
        if target.name == "step-00000015":
            os.kill(os.getpid(), signal.SIGKILL)

    Disk.rename = fatal  # type: ignore[method-assign]


def slow_steps(held: int = 25) -> None:
    """Steps that take a few milliseconds, so that a test can act between two; and the step `held`
    begins only when the rank is told to stop, so that a test which is late finds it there."""
    from trainer.loop import Loop

    step = Loop._step

    def slow(self, number):  # type: ignore[no-untyped-def]
        time.sleep(0.005)
        while number == held and not self._parts.stop.asked:
            time.sleep(0.005)
        step(self, number)

    Loop._step = slow  # type: ignore[method-assign]


def small_units() -> None:
    """Each block of a module list is sharded by itself, however small."""
    from trainer import parallel

    parallel.UNIT_PARAMETERS = 1
