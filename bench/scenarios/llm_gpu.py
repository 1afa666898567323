"""`llm-gpu`: decoders of Qwen3's shapes on one GPU, against what it reads and computes (target 8).

Random weights, the engine alone: steps of 64 and 256 sequences against the memory's bandwidth as
measured in the same run, prompts of 2,048 tokens against bf16's peak as measured, and what the host
does in a step of 256. The roof is the floor here. Where torch has no CUDA device it is refused.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.record import Goal, Record
from bench.rivals import chosen
from bench.roofline import Machine, Roofline, Shape
from bench.scenarios import Options, scenario
from bench.series import MeasureFailed
from bench.serving import ROOT, environment, python
from bench.tables import number

COMMON = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {
        **COMMON,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "Qwen3-8B": {
        **COMMON,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
}
BATCHES, QUICK_BATCHES = (1, 64, 256), (64, 256)
JUDGED, LARGEST = 64, 256
PROMPT, TOKENS, QUICK_TOKENS = 512, 128, 32
LONG, LONG_COUNT = 2048, 16
OF_BANDWIDTH, OF_PEAK, HOST_MS = 60.0, 50.0, 1.0
PATIENCE_S = 900


@scenario("llm-gpu", "decoders of Qwen3's shapes on one GPU: bandwidth, prefill, the host's part")
def run(options: Options) -> Record:
    chosen(options.rivals, quick=options.quick, among={})
    tokens = QUICK_TOKENS if options.quick else TOKENS
    batches = QUICK_BATCHES if options.quick else BATCHES
    shapes: dict[str, dict[str, Any]] = {}
    for name, config in SHAPES.items():
        with options.console.status(f"{name} ..."):
            found = _program(config, batches, tokens)
        shapes[name] = figures(config, found, tokens, options.folder)
    options.console.print(_table(shapes))
    largest = shapes["Qwen3-8B"]
    return Record(
        scenario="llm-gpu",
        metric=f"Qwen3-8B, {JUDGED} at once",
        unit="tokens/s",
        higher_is_better=True,
        seed=options.seed,
        ours=largest["steps"][str(JUDGED)]["tokens_s"],
        floor=largest["steps"][str(JUDGED)]["roof_tokens_s"],
        goals=goals(shapes),
        detail={"shapes": shapes, "prompt": PROMPT, "tokens": tokens, "long_prompt": LONG},
    )


def _program(config: dict[str, Any], batches: tuple[int, ...], tokens: int) -> dict[str, Any]:
    """Raises MeasureFailed."""
    asked = {
        "device": "cuda",
        "config": config,
        "batches": batches,
        "prompt": PROMPT,
        "tokens": tokens,
        "long": LONG,
        "long_count": LONG_COUNT,
    }
    command = python("-m", "bench.generators.gpu", json.dumps(asked))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise MeasureFailed(f"llm-gpu needs a GPU: {said[-1] if said else done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def figures(
    config: dict[str, Any], found: dict[str, Any], tokens: int, folder: Path
) -> dict[str, Any]:
    """What the program found, as shares of what its device reads and computes."""
    place = folder / "shape"
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(config))
    machine = Machine(found["machine"]["bytes_s"], found["machine"]["flops"])
    roof = Roofline(Shape.of(place), machine)
    context = PROMPT + tokens / 2
    steps = {}
    for batch, seconds in found["steps"].items():
        bandwidth, flops = roof.utilisation(int(batch), context, seconds)
        steps[batch] = {
            "ms": seconds * 1e3,
            "tokens_s": int(batch) / seconds,
            "roof_tokens_s": int(batch) / roof.step_s(int(batch), context),
            "bandwidth": bandwidth,
            "flops": flops,
        }
    return {
        "device": found["device"],
        "machine": found["machine"],
        "steps": steps,
        "prefill": LONG_COUNT * roof.prefill_s(LONG) / found["prefill_s"],
        "host_ms": found["host_s"] * 1e3,
    }


def goals(shapes: dict[str, dict[str, Any]]) -> list[Goal]:
    found = []
    for name, one in shapes.items():
        for batch, step in one["steps"].items():
            if int(batch) >= JUDGED:
                share, what = 100 * step["bandwidth"], f"{name}: bandwidth, {batch} at once"
                found.append(Goal.least(what, share, OF_BANDWIDTH, "%"))
        what = f"{name}: host in a step of {LARGEST}"
        found.append(Goal.most(what, one["host_ms"], HOST_MS, "ms"))
    prefill = 100 * shapes["Qwen3-8B"]["prefill"]
    found.append(Goal.least("Qwen3-8B: prefill against bf16's peak", prefill, OF_PEAK, "%"))
    return found


def _table(shapes: dict[str, dict[str, Any]]) -> Table:
    device = next(iter(shapes.values()))["device"]
    table = Table(title=f"one {device}, random weights", title_justify="left")
    for column in ("shape", "at once", "step", "tokens/s", "of bandwidth", "prefill", "host"):
        table.add_column(column, justify="left" if column == "shape" else "right")
    for name, one in shapes.items():
        for batch, step in one["steps"].items():
            cells = [f"{step['ms']:.2f} ms", number(step["tokens_s"]), f"{step['bandwidth']:.0%}"]
            last = int(batch) == LARGEST
            more = [f"{one['prefill']:.0%}", f"{one['host_ms']:.2f} ms"] if last else ["", ""]
            table.add_row(name, batch, *cells, *more)
    return table
