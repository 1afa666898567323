"""`sync`: what each way of keeping replicas together sends, and the loss that it reaches.

Two ranks train the same decoder on the same samples for the same steps, each time under another
`[sync]`. Bytes are those that a rank hands over, by its own count; the loss is on held-out samples.
Gradients in every step are the yardstick: the others send less and may learn less from it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.record import Goal, Record
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed
from bench.serving import ROOT, environment

RANKS = 2
YARDSTICK, OURS = "gradients", "streaming DiLoCo, bf16"
_DILOCO = """method = "accumulate"
every = 10
carry = "deltas"
outer_lr = 0.7
outer_momentum = 0.6"""
METHODS: Mapping[str, str] = {
    YARDSTICK: 'method = "gradients"',
    "parameter broadcast": 'method = "broadcast"',
    "averaging, every step": 'method = "accumulate"',
    "local SGD, every 10": 'method = "accumulate"\nevery = 10',
    "DiLoCo, every 10": _DILOCO,
    OURS: f'{_DILOCO}\ndtype = "bfloat16"\nfragments = 5\noverlap = 1',
}
QUICK = (YARDSTICK, "local SGD, every 10", OURS)
# What the loss may rise by for the bytes that are saved.
WORSE = 1.03
PATIENCE_S = 300


@scenario("sync", "bytes sent and loss reached by each way of keeping replicas together")
def run(options: Options) -> Record:
    steps = 240 if options.quick else 600
    names = QUICK if options.quick else tuple(METHODS)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        with options.console.status(f"{name} ..."):
            found[name] = _train(options, name, steps)
    options.console.print(_table(found))
    yardstick, ours = found[YARDSTICK], found[OURS]
    return Record(
        scenario="sync",
        metric="sent by a rank in a step",
        unit="KB",
        higher_is_better=False,
        seed=options.seed,
        ours=ours["sent_kb"],
        rivals={name: found[name]["sent_kb"] for name in names if name != OURS},
        goals=[
            Goal.most(
                "loss, against gradients in every step",
                ours["loss"] / yardstick["loss"],
                WORSE,
                "×",
            ),
            Goal.least("fewer bytes", yardstick["sent_kb"] / ours["sent_kb"], 10, "×"),
        ],
        detail={"steps": steps, "ranks": RANKS, "methods": found},
    )


def _train(options: Options, name: str, steps: int) -> dict[str, float]:
    slug = "".join(c if c.isalnum() else "-" for c in name)
    config, folder = options.folder / f"{slug}.toml", options.folder / slug
    config.write_text(
        f"""
run = "{folder}"
seed = {options.seed}
steps = {steps}
log_every = 10

[model]
class = "backends.models.decoder:Decoder"

[model.config]
model_type = "llama"
vocab_size = 512
hidden_size = 128
intermediate_size = 384
num_hidden_layers = 2
num_attention_heads = 2
tie_word_embeddings = true

[data]
class = "bench.trainers.data:Sequences"
batch_size = 16

[data.config]
count = 4800
length = 32
vocabulary = 512
seed = {options.seed}

[optimizer]
lr = 2e-3
clip = 1.0

[schedule]
name = "cosine"
warmup = 10

[parallel]
dp_replicate = -1
dp_shard = 1

[sync]
{METHODS[name]}
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    try:
        done = subprocess.run(
            [*command, "-m", "trainer", str(config)],
            cwd=ROOT,
            env={**environment(), "TORCH_CPP_LOG_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasureFailed(f"{name}: it took more than {PATIENCE_S} s") from error
    if done.returncode != 0:
        raise MeasureFailed(f"{name}: exit status {done.returncode}: {done.stderr.strip()[-300:]}")
    return _read(folder, steps)


def _read(folder: Path, steps: int) -> dict[str, float]:
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    by_event = {line["event"]: line for line in lines}
    return {
        "sent_kb": by_event["exchanged"]["bytes"] / steps / 1e3,
        "loss": by_event["evaluation"]["loss"],
        "seconds": by_event["end"]["seconds"],
    }


def _table(found: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title=f"{RANKS} ranks", title_justify="left")
    for column in ("method", "KB a step", "held-out loss", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, figures in found.items():
        table.add_row(
            name,
            f"{figures['sent_kb']:,.0f}",
            f"{figures['loss']:.4f}",
            f"{figures['seconds']:.1f}",
        )
    return table
