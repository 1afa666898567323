"""Runs that divide their work anew, and train the same."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from backends.checkpoint import Run
from tests.trainer.ranks import Ranks, journal, slow_steps, wait_for
from tests.trainer.tiny import CONFIG, DECODER

pytestmark = pytest.mark.timeout(900)

PLAIN = ("model.class=tests.trainer.tiny:Plain", "checkpoint.probe=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("partition")


def start(folder: Path, config: str, name: str, *overrides: str, **options) -> Ranks:
    path = folder / f"{name}.toml"
    path.write_text(config.format(run=folder / name))
    return Ranks(folder / "logs", [str(path), *overrides], **options)


def train(folder: Path, config: str, name: str, *overrides: str, **options) -> Path:
    ranks = start(folder, config, name, *overrides, **options)
    assert ranks.wait() == [0] * options.get("count", 1), ranks.log()
    return folder / name


def losses(run: Path) -> list[float]:
    by_step = {line["step"]: line["loss"] for line in journal(run, "step")}
    return [by_step[step] for step in sorted(by_step)]


def heavy_first_layer() -> None:
    from backends.models.decoder import Layer, Trunk

    init, forward = Trunk.__init__, Layer.forward

    def marked(self, *args):  # type: ignore[no-untyped-def]
        init(self, *args)
        self.layers[0].heavy = True

    def slow(self, *args):  # type: ignore[no-untyped-def]
        # Far more than what else there is in a layer, also on a machine that has other work.
        time.sleep(0.04 if hasattr(self, "heavy") else 0.002)
        return forward(self, *args)

    Trunk.__init__, Layer.forward = marked, slow  # type: ignore[method-assign]


def test_layers_go_where_there_is_time_for_them(folder):
    """Measured in the first steps, dealt at the next checkpoint, and known to the next start."""
    alone = train(folder, DECODER, "alone", "steps=12", "checkpoint.every=4")
    options = ("steps=12", "checkpoint.every=4", "parallel.pp=2", "balance.layers=true")
    hurt = dict.fromkeys(range(2), heavy_first_layer)
    run = train(folder, DECODER, "dealt", *options, count=2, hurt=hurt)
    (dealt,) = journal(run, "layers_dealt")
    assert dealt["step"] == 8 and dealt["layers"] == [1, 3]
    assert dealt["after_s"] < dealt["before_s"]
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    train(folder, DECODER, "dealt", *options, "steps=24", count=2, hurt=hurt)
    again = journal(run, "layers_dealt")[-1]
    assert again["step"] == 20 and again["layers"] == [1, 3]
    assert again["before_s"] == pytest.approx(again["after_s"])


def test_what_does_not_fit_is_said(folder):
    options = ("steps=12", "checkpoint.every=6", "parallel.pp=2", "balance.layers=true")
    run = train(folder, DECODER, "tight", *options, "balance.memory=1 KiB", count=2)
    (dealt,) = journal(run, "layers_dealt")
    assert dealt["fits"] is False


def _slow(seconds: float) -> None:
    from trainer.parallel import Objective

    forward = Objective.forward

    def slow(self, batch):  # type: ignore[no-untyped-def]
        time.sleep(seconds * len(batch["x"]))
        return forward(self, batch)

    Objective.forward = slow  # type: ignore[method-assign]


def slow_machine() -> None:
    _slow(0.009)


def fast_machine() -> None:
    _slow(0.003)


def test_slow_ranks_get_fewer_samples_and_all_train_the_same(folder):
    alone = train(folder, CONFIG, "one", *PLAIN, "steps=15")
    copies = ("parallel.dp_shard=1", "parallel.dp_replicate=2", "balance.samples=true")
    hurt = {0: fast_machine, 1: slow_machine}
    shared = (*PLAIN, "steps=15", *copies, "data.micro_batch=5")
    run = train(folder, CONFIG, "shared", *shared, count=2, hurt=hurt)
    first = journal(run, "samples_shared")[0]
    assert first["step"] == 5 and sum(first["samples"]) == 24
    assert 15 <= first["samples"][0] <= 21  # 18 were it not for all else that runs here
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert Run(run).manifest(15).position == 15 * 24


def test_ranks_that_are_lost_leave_a_mesh_that_fits(folder):
    """Two copies of two shards each; then three ranks, with the same samples."""
    alone = train(folder, CONFIG, "whole", *PLAIN, "steps=15")
    mesh = (*PLAIN, "steps=15", "parallel.dp_replicate=2", "parallel.dp_shard=2")
    hurt = dict.fromkeys(range(4), partial(slow_steps, 12))
    ranks = start(folder, CONFIG, "lost", *mesh, "balance.mesh=true", count=4, hurt=hurt)
    run = folder / "lost"
    wait_for(lambda: any(line["step"] >= 7 for line in journal(run, "step")), ranks)
    ranks.kill()
    ranks.wait()
    refused = start(folder, CONFIG, "lost", *mesh, count=3)
    assert refused.wait() == [2, 2, 2] and "does not fit 3 ranks" in refused.log()
    train(folder, CONFIG, "lost", *mesh, "balance.mesh=true", count=3)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert Run(run).manifest(15).position == 15 * 24


@pytest.mark.parametrize(
    ("overrides", "ranks", "said"),
    [
        (("balance.layers=true",), 2, "only with parallel.pp above 1"),
        (("balance.memory=1 GiB",), 2, "only with balance.layers = true"),
        (("balance.layers=true", "parallel.pp=2", "compute.compile=true"), 2, "one by one"),
        (("balance.samples=true",), 2, "goes with whole copies"),
        (("balance.samples=true", "sync.method=broadcast"), 2, 'sync.method = "gradients"'),
    ],
)
def test_what_cannot_work_is_refused(folder, overrides, ranks, said):
    from trainer.build import prepare
    from trainer.config import load
    from trainer.errors import ConfigError

    config = folder / "refused.toml"
    config.write_text(CONFIG.format(run=folder / "refused"))
    with pytest.raises(ConfigError) as caught:
        prepare(load(config, {}, [*PLAIN, *overrides]), ranks)
    assert said in str(caught.value)
