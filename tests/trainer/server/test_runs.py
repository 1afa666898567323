"""A server and its workers as real processes: some die, come late, are slow; nothing is lost."""

from __future__ import annotations

import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_channel, read_tensors
from tests.trainer.ranks import Ranks, journal, wait_for, weight_hashes
from tests.trainer.tiny import CONFIG
from trainer.config import Loaded, load
from trainer.errors import ConfigError
from trainer.process import alone, prepare
from trainer.server.arrivals import Arrival, read
from trainer.server.replay import replay

pytestmark = pytest.mark.timeout(900)

PLAIN = ("model.class=tests.trainer.tiny:Plain", "checkpoint.probe=2", "evaluate.every=1000")
SERVER = (*PLAIN, "sync.method=server", "sync.workers=0", "sync.parts=2", "sync.patience_s=30")
ASYNC = ("sync.carry=deltas", "sync.every=3", "sync.staleness=2", "sync.outer_lr=0.7")
ASYNC += ("sync.outer_momentum=0.5", "sync.lease_s=3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


class Party:
    """A server's process and its workers'."""

    def __init__(self, folder: Path, name: str, *overrides: str) -> None:
        self.run, self._folder = folder / name, folder
        self.config = folder / f"{name}.toml"
        self.config.write_text(CONFIG.format(run=self.run))
        self.overrides = [*SERVER, *overrides]
        self.workers: list[Ranks] = []
        self.server = self.serve()

    def serve(self) -> Ranks:
        argv = [str(self.config), *self.overrides]
        hurt = {0: slow_evaluation} if "sync.lease_s=3" in argv else None
        self.server = Ranks(self._folder / "logs", argv, hurt=hurt)
        return self.server

    def join(self, slow: bool = False, held: Path | None = None) -> Ranks:
        argv = ["worker", str(self.config), *self.overrides]
        hurt = {0: slow_work if slow else partial(steady_work, held)}
        self.workers.append(Ranks(self._folder / "logs", argv, hurt=hurt))
        return self.workers[-1]

    def wait(self, *killed: Ranks) -> Path:
        assert self.server.wait() == [0], self.server.log()
        for worker in self.workers:
            assert worker.wait() == [-9 if worker in killed else 0], worker.log()
        return self.run

    def loaded(self) -> Loaded:
        return load(self.config, {}, self.overrides)

    def until(self, arrivals: int) -> None:
        def there() -> bool:
            path = self.run / "arrivals.jsonl"
            return path.exists() and path.read_bytes().count(b'"arrival"') >= arrivals

        wait_for(there, self.server)

    def until_from(self, *workers: Ranks) -> None:
        """Something of each has arrived."""
        wanted = {worker.processes[0].pid for worker in workers}

        def there() -> bool:
            return (self.run / "arrivals.jsonl").exists() and wanted <= {
                pid(arrival) for arrival in read(self.run).arrivals
            }

        wait_for(there, self.server)

    def assert_replays(self) -> None:
        found = alone(self.loaded(), lambda session, world: self._replay(session, world))
        assert found == 0

    def _replay(self, session, world) -> int:  # type: ignore[no-untyped-def]
        self.replayed = replay(session, world.device, None)
        assert self.replayed.wrong is None
        return 0


def steady_work(held: Path | None = None) -> None:
    """A few milliseconds a ticket, so that a test can act between two; and much longer as long as
    `held` is missing, so that others have the time to come."""
    _work_for(0.004, held)


def slow_work() -> None:
    _work_for(0.1)


def _work_for(seconds: float, held: Path | None = None) -> None:
    from trainer.server.work import Workplace

    contribute = Workplace.contribute

    def slow(self, ticket):  # type: ignore[no-untyped-def]
        until = time.monotonic() + 1.0
        while held is not None and not held.exists() and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(seconds * ticket.steps)
        return contribute(self, ticket)

    Workplace.contribute = slow  # type: ignore[method-assign]


def slow_evaluation() -> None:
    """The first one takes longer than a worker may be silent."""
    from trainer.evaluate import Evaluator

    run, seen = Evaluator.run, []

    def slow(self):  # type: ignore[no-untyped-def]
        if not seen:
            seen.append(True)
            time.sleep(3.5)
        return run(self)

    Evaluator.run = slow  # type: ignore[method-assign]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(Run(run).folder(step), Run(run).manifest(step))


def assert_each_sample_once(run: Path, total: int) -> None:
    arrivals = read(run).arrivals
    seen = [
        p for a in arrivals for p in range(a.ticket.position, a.ticket.position + a.ticket.total)
    ]
    assert sorted(seen) == list(range(total))


@pytest.fixture(scope="module")
def two_workers(folder: Path) -> Party:
    party = Party(folder, "two", "steps=12")
    party.join()
    party.join()
    party.wait()
    return party


def test_without_staleness_it_is_the_synchronous_run(folder, two_workers):
    """Gradients of two workers, as of two ranks; who computes them, and how many do, is all one."""
    config = folder / "ranks.toml"
    config.write_text(CONFIG.format(run=folder / "ranks"))
    copies = ("parallel.dp_shard=1", "parallel.dp_replicate=2", "steps=12")
    ranks = Ranks(folder / "logs", [str(config), *PLAIN, *copies], 2)
    one = Party(folder, "one", "steps=12")
    one.join(slow=True)
    assert ranks.wait() == [0, 0], ranks.log()
    one.wait()
    ours, theirs = weights(two_workers.run, 12), weights(folder / "ranks", 12)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    assert weight_hashes(one.run, 12) == weight_hashes(two_workers.run, 12)
    assert Run(one.run).manifest(12).evaluation == pytest.approx(
        Run(folder / "ranks").manifest(12).evaluation, rel=1e-4
    )
    two_workers.assert_replays()
    assert two_workers.replayed.staleness == 0 and two_workers.replayed.arrivals == 24
    channel = read_channel(Run(one.run), "stable")
    assert channel is not None and channel.step == 12


def test_every_byte_is_counted(two_workers):
    size = sum(-(-t.nbytes // 16) * 16 for t in weights(two_workers.run, 12).values())
    (line,) = journal(two_workers.run, "exchanged")
    assert line["bytes"] == 24 * size
    assert 12 * size <= line["weights"] <= 24 * size  # a worker that has a version is not sent it


def test_deltas_of_single_steps_are_accumulated_ones(folder):
    """Without staleness, as replicas that exchange deltas."""
    outer = ("steps=8", "sync.carry=deltas", "sync.outer_lr=0.7", "sync.outer_momentum=0.9")
    sgd = ("optimizer.name=sgd", "optimizer.momentum=0.0", "schedule.name=constant")
    party = Party(folder, "deltas", *outer, *sgd)
    party.join()
    party.join()
    config = folder / "accumulate.toml"
    config.write_text(CONFIG.format(run=folder / "accumulate"))
    copies = ("parallel.dp_shard=1", "parallel.dp_replicate=2", "sync.method=accumulate")
    ranks = Ranks(folder / "logs", [str(config), *PLAIN, *outer, *sgd, *copies], 2)
    assert ranks.wait() == [0, 0], ranks.log()
    ours, theirs = weights(party.wait(), 8), weights(folder / "accumulate", 8)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


AVERAGE = ("optimizer.ema=0.8", "steps=8", "schedule.name=constant")


def test_the_server_s_average_is_that_of_one_rank(folder):
    party = Party(folder, "average", *AVERAGE)
    party.join()
    party.join()
    config = folder / "beside.toml"
    config.write_text(CONFIG.format(run=folder / "beside"))
    alone = Ranks(folder / "logs", [str(config), *PLAIN, *AVERAGE])
    assert alone.wait() == [0], alone.log()
    run = party.wait()
    ours, theirs = weights(run, 8), weights(folder / "beside", 8)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)
    assert Run(run).manifest(8).evaluation == pytest.approx(
        Run(folder / "beside").manifest(8).evaluation, rel=1e-4
    )
    party.assert_replays()


def test_a_killed_server_goes_on_with_its_average(folder):
    options = (*AVERAGE, "steps=12", "checkpoint.every=2", "sync.staleness=1")
    party = Party(folder, "averaging", *options)
    party.join(slow=True)
    party.until(13)
    party.server.kill()
    assert party.server.wait() == [-9]
    party.serve()
    party.wait()
    party.assert_replays()
    plain = Party(folder, "unaveraged", *options[1:], "optimizer.ema=1e-9")
    plain.join()
    plain.wait()
    ours, theirs = (Run(p.run).manifest(12).tensors for p in (party, plain))
    assert all(ours[name].xxh3 != theirs[name].xxh3 for name in ours)  # it is what is published


def test_workers_are_slow_killed_and_late_and_nothing_is_lost(folder):
    party = Party(folder, "async", *ASYNC, "steps=90", "sync.parts=3", "sync.scale_steps=true")
    here = folder / "all-are-here"
    steady, killed = party.join(held=here), party.join(held=here)
    party.until_from(steady, killed)
    killed.kill()
    slow = party.join(slow=True)
    party.until_from(slow)
    late = party.join()
    party.until_from(late)
    here.touch()
    run = party.wait(killed)
    assert_each_sample_once(run, 90 * 24)
    assert Run(run).manifest(90).position == 90 * 24
    assert {pid(arrival) for arrival in read(run).arrivals} == {
        worker.processes[0].pid for worker in (steady, killed, slow, late)
    }
    # An evaluation took longer than a lease, and who beat meanwhile was not taken for dead.
    left = {int(line["worker"].split("-")[-2]) for line in journal(run, "left")}
    assert killed.processes[0].pid in left and steady.processes[0].pid not in left
    party.assert_replays()
    # Three rounds of three ahead of the oldest ticket, and what three others had out before it.
    assert 0 < party.replayed.staleness <= 3 * 3 + 2 + 3
    losses = [line["loss"] for line in journal(run, "step")]
    assert sum(losses[-10:]) < sum(losses[:10])
    steps = [a.ticket.steps for a in read(run).arrivals if pid(a) == slow.processes[0].pid]
    # It is many times as slow, so its tickets became short. The first has as many steps as any, or
    # as many as the killed one's that it went on with.
    assert min(steps[1:]) < 3


def pid(arrival: Arrival) -> int:
    return int(arrival.worker.split("-")[-2])


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_server_that_is_killed_goes_on_with_the_same_workers(folder, staleness, two_workers):
    name = f"killed-{staleness}"
    options = ("steps=12", "checkpoint.every=2", f"sync.staleness={staleness}")
    party = Party(folder, name, *options)
    party.join()
    party.join(slow=True)
    party.until(11)
    party.server.kill()
    assert party.server.wait() == [-9]
    party.serve()
    run = party.wait()
    starts = [line["step"] for line in journal(run, "start")]
    assert starts[0] == 0 and 2 <= starts[1] < 12
    assert_each_sample_once(run, 12 * 24)
    party.assert_replays()
    if not staleness:
        assert weight_hashes(run, 12) == weight_hashes(two_workers.run, 12)


def test_a_run_of_ranks_goes_on_with_a_server_and_the_other_way_round(folder):
    config = folder / "changing.toml"
    config.write_text(CONFIG.format(run=folder / "changing"))
    common = ("schedule.name=constant", "checkpoint.every=2")
    assert Ranks(folder / "logs", [str(config), *PLAIN, *common, "steps=4"]).wait() == [0]
    party = Party(folder, "changing", *common, "steps=8")
    party.join()
    party.wait()
    party.assert_replays()
    assert Ranks(folder / "logs", [str(config), *PLAIN, *common, "steps=10"]).wait() == [0]
    whole = Ranks(folder / "logs", [str(config), *PLAIN, *common, "steps=10", f"run={folder}/w"])
    assert whole.wait() == [0]
    ours, theirs = weights(folder / "changing", 10), weights(folder / "w", 10)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "ranks", "said"),
    [
        ((), 2, "a server is one process"),
        (("sync.parts=5",), 1, "data.batch_size = 24 is no multiple of 5"),
        (("sync.staleness=-1",), 1, "with parts = 2 expected 0 to 255"),
        (("sync.every=2",), 1, 'a gradient is of one step; set sync.carry = "deltas"'),
        (("sync.address=nowhere",), 1, "a host and a port"),
    ],
)
def test_what_cannot_work_is_refused(folder, overrides, ranks, said):
    config = folder / "refused.toml"
    config.write_text(CONFIG.format(run=folder / "refused"))
    with pytest.raises(ConfigError) as caught:
        prepare(load(config, {}, [*SERVER, *overrides]), ranks)
    assert said in str(caught.value)


def test_positions_of_a_round_follow_each_other(two_workers):
    tickets = [arrival.ticket for arrival in read(two_workers.run).arrivals]
    assert all(b.position == a.position + a.total for a, b in pairwise(tickets))
