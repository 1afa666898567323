"""What a person and their tools see: speed, TensorBoard, Prometheus, spikes, plans."""

from __future__ import annotations

import struct
import urllib.request
from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run
from tests.trainer.ranks import journal
from tests.trainer.tiny import DECODER, Tiny
from trainer.config import load
from trainer.elastic import Place
from trainer.errors import BadAddress, Diverged
from trainer.exporter import Exporter
from trainer.metrics import Journal, Reporter
from trainer.process import dry_run
from trainer.pulse import Reading
from trainer.speed import Speed, count_flops, describe
from trainer.spikes import Spikes
from trainer.tensorboard import crc32c


def test_a_spike_is_far_above_the_usual_loss():
    spikes = Spikes(3.0, 10)
    falling = [10.0, 4.0, 2.0, 1.5, 1.2, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0, 2.9]
    assert [spikes.usual(loss) for loss in falling] == [None] * 12
    assert spikes.usual(3.4) == pytest.approx(1.1, abs=0.1)
    assert spikes.usual(1.0) is None
    assert Spikes(None, 10).usual(1e9) is None


def test_the_start_is_no_spike():
    spikes = Spikes(2.0, 10)
    assert [spikes.usual(loss) for loss in (1.0, 50.0, 1.0, 90.0, 3.0)] == [None] * 5


class Leaps(Tiny):
    """Its loss is a hundred times what it was from some call on."""

    def loss(self, batch):  # type: ignore[no-untyped-def]
        loss, metrics = super().loss(batch)
        return loss * (100.0 if self._calls > 9 else 1.0), metrics


def test_a_spike_stops_the_run_with_the_last_good_version(run, train_here):
    with pytest.raises(Diverged, match=r"the loss is .*, and was about .* last good version is 5-"):
        train_here(
            "model.class=tests.trainer.test_reports:Leaps", "spike.factor=5", "spike.window=8"
        )
    assert Run(run).steps() == [5]


def test_flops_are_those_of_the_products():
    """Forward 2·m·n·k, backward twice that, but for the first layer's input."""
    with torch.device("meta"):
        model = Tiny(dropout=0.0)
    batch = {"x": torch.zeros(4, 8), "y": torch.zeros(4, dtype=torch.int64)}
    products = [(8, 16), (16, 16), (16, 16), (16, 3)]
    forward = sum(2 * 4 * inward * outward for inward, outward in products)
    assert count_flops(model.loss, batch) == 3 * forward - 2 * 4 * 8 * 16


def test_flops_of_a_decoder_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    from backends.models.decoder import Decoder

    with torch.device("meta"):
        model = Decoder(
            model_type="llama",
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
        tokens = torch.zeros(2, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.loss({"tokens": tokens})[0].backward()
    assert count_flops(model.loss, {"tokens": tokens}) == counter.get_total_flops()


def test_a_model_that_needs_values_has_no_flops():
    with torch.device("meta"):
        model = Tiny()

    def loss(batch):  # type: ignore[no-untyped-def]
        found, metrics = model.loss(batch)
        return found * float(found), metrics

    batch = {"x": torch.zeros(4, 8), "y": torch.zeros(4, dtype=torch.int64)}
    assert count_flops(loss, batch) is None


def test_rates_are_in_tokens_where_samples_are_sequences():
    rates = Speed(tokens=128, flops=1e9, peak=4e12).rates(1000.0)
    assert rates == {"samples_per_s": 1000.0, "tokens_per_s": 128_000.0, "mfu": 0.25}
    assert describe({**rates, "memory_bytes": 2**30}) == "128,000 tokens/s  MFU 25.0%  1.0 GiB"
    assert describe(Speed(None, None, None).rates(0.25)) == "0.25 samples/s"


def test_arithmetic_is_counted_when_a_run_has_lasted_a_while(tmp_path):
    now = [0.0]
    reporter = Reporter(
        Journal(tmp_path / "metrics.jsonl"), None, every=1, batch_size=10, clock=lambda: now[0]
    )

    def measure() -> Speed:
        now[0] += 5.0  # which is not training's
        return Speed(None, 2e9, 4e10)

    reporter.measure = measure
    for step in range(1, 5):
        now[0] += 3.0
        reading = Reading(step, loss=1.0, metrics={}, norm=1.0, stop=False, failed=False)
        reporter.step(reading, position=step * 10, lr=0.1)
    reporter.close()
    lines = journal(tmp_path, "step")
    assert [line["samples_per_s"] for line in lines] == [pytest.approx(10 / 3, abs=0.1)] * 4
    assert ["mfu" in line for line in lines] == [False, False, False, True]


def test_the_check_sum_is_castagnolis():
    """The vectors of RFC 3720, B.4."""
    assert crc32c(b"\x00" * 32) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def _scalars(file: Path) -> list[tuple[int, dict[str, float]]]:
    """An event file, read by the format's description."""
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<Q", data)
        body, data = data[12 : 12 + length], data[16 + length :]
        fields = dict(_fields(body))
        values = {}
        for number, value in _fields(fields.get(5, b"")):
            inner = dict(_fields(value)) if number == 1 else {}
            values[inner[1].decode()] = struct.unpack("<f", inner[2])[0]
        found.append((fields.get(2, 0), values))
    return found


def _fields(data: bytes):  # type: ignore[no-untyped-def]
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            yield key >> 3, data[at : at + size]
            at += size


def test_tensorboard_gets_what_the_journal_gets(run, train_here):
    assert train_here("steps=5", "metrics.tensorboard=true") == 0
    (file,) = (run / "tensorboard").glob("events.out.tfevents.*")
    (_, *found) = _scalars(file)
    losses = {step: values["loss"] for step, values in found if "loss" in values}
    wanted = {line["step"]: line["loss"] for line in journal(run, "step")}
    assert losses == pytest.approx(wanted)
    assert any("held_out/accuracy" in values for _, values in found)
    assert {"lr", "grad_norm", "samples_per_s", "memory_bytes"} <= set(found[0][1])


def test_prometheus_gets_the_newest():
    exporter = Exporter("127.0.0.1:0")
    try:
        exporter.scalars(3, {"loss": 2.5, "held_out/loss": 2.0})
        exporter.scalars(4, {"loss": 1.5})
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics") as reply:
            text = reply.read().decode()
        assert "penstock_trainer_loss 1.5" in text and "penstock_trainer_step 4.0" in text
        assert "penstock_trainer_held_out_loss 2.0" in text
        with pytest.raises(BadAddress, match=r"metrics\.prometheus: .*in use"):
            Exporter(f"127.0.0.1:{exporter.port}")
    finally:
        exporter.close()


@pytest.mark.parametrize(
    ("ranks", "layout", "mesh", "held"),
    [
        # 16×16 embedding; a layer: 16×16 q, 2×8×16 k and v, 16×16 o, 3×16×32, 2×16 + 2×4
        # norms; one more at the end. The pipeline's last rank has the tied embedding, too.
        (1, (), "1 rank", 9648),
        (2, ("parallel.tp=2",), "2 ranks: tp 2", 4912),
        (2, ("parallel.pp=2",), "2 ranks: pp 2", 4960),
        (4, ("parallel.pp=2", "parallel.dp_shard=2"), "4 ranks: pp 2 × dp_shard 2", 2480),
    ],
)
def test_a_plan_says_what_a_rank_holds(tmp_path, capsys, ranks, layout, mesh, held):
    path = tmp_path / "t.toml"
    path.write_text(DECODER.format(run=tmp_path / "run"))
    dry_run(load(path, {}, layout), Place(), ranks)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["mesh"] == mesh
    assert lines["parameters"] == f"9,648, {held:,} on a rank"


def test_a_plan_of_a_finished_run_says_so(configure, train_here, capsys):
    assert train_here("steps=5") == 0
    capsys.readouterr()
    dry_run(configure("steps=5"), Place(), None)
    assert "is done: it is at step 5, steps = 5" in capsys.readouterr().out


COPIES = ("parallel.dp_replicate=2", "parallel.dp_shard=1")
DILOCO = ("sync.method=accumulate", "sync.every=5", "sync.carry=deltas", "sync.outer_momentum=0.9")


@pytest.mark.parametrize(
    ("options", "ranks", "said", "memory"),
    [
        (("optimizer.ema=0.9",), 1, "", "weights 3.0 KiB, gradients 3.0 KiB, optimizer 6.0 KiB, "),
        (
            (*COPIES, "sync.method=broadcast"),
            2,
            "broadcast: 2 replicas, each the root of a part of the parameters",
            "optimizer 3.0 KiB",
        ),
        (
            (*COPIES, *DILOCO),
            2,
            "accumulate: 2 replicas exchange deltas every 5 steps",
            "optimizer 6.0 KiB, sync 9.0 KiB",
        ),
        (
            ("sync.method=server", "sync.staleness=1", "sync.workers=3"),
            1,
            "server, 3 workers started here: gradients of a step, staleness 1 at most",
            "optimizer 6.0 KiB",
        ),
    ],
)
def test_the_plan_says_how_replicas_are_kept_together_and_what_that_holds(
    configure, capsys, options, ranks, said, memory
):
    dry_run(configure("model.class=tests.trainer.tiny:Plain", *options), Place(), ranks)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines.get("sync", "") == said and memory in lines["memory"]
    assert ("average" in lines["memory"]) is ("optimizer.ema=0.9" in options)
