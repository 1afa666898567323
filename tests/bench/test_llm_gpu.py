"""Shapes on a GPU: the program runs on a CPU too, and its figures are shares of a roof."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from bench.__main__ import main
from bench.scenarios.llm_gpu import COMMON, SHAPES, figures, goals
from bench.serving import ROOT, environment, python

TINY = {
    **COMMON,
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def test_the_program_times_steps_prompts_and_the_host(tmp_path):
    asked = {"device": "cpu", "config": TINY, "batches": [1, 8], "prompt": 16, "tokens": 6}
    command = python(
        "-m", "bench.generators.gpu", json.dumps({**asked, "long": 64, "long_count": 2})
    )
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["steps"].keys() == {"1", "8"} and min(found["steps"].values()) > 0
    assert found["host_s"] > 0 and found["prefill_s"] > 0
    one = figures(TINY, found, 6, tmp_path)
    assert one["steps"]["8"]["bandwidth"] > 0 and one["prefill"] > 0


def test_a_step_at_the_roof_is_all_of_it(tmp_path):
    machine = {"bytes_s": 4e12, "flops": 8e14}
    found = {"device": "g", "machine": machine, "prefill_s": 1.0, "host_s": 0.0005}
    shapes = {}
    for name, config in SHAPES.items():
        roof = figures(config, {**found, "steps": {"64": 1.0, "256": 1.0}}, 32, tmp_path)
        steps = {b: int(b) / one["roof_tokens_s"] for b, one in roof["steps"].items()}
        shapes[name] = figures(config, {**found, "steps": steps}, 32, tmp_path)
        assert shapes[name]["steps"]["64"]["bandwidth"] == pytest.approx(1)
    met = {goal.what: goal.met for goal in goals(shapes)}
    assert met["Qwen3-8B: bandwidth, 64 at once"] and met["Qwen3-0.6B: host in a step of 256"]
    assert len(met) == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_is_refused(capsys):
    assert main(["run", "llm-gpu", "--quick"]) == 1
    said = capsys.readouterr()
    assert "llm-gpu needs a GPU: there is no CUDA device" in said.err and said.out == ""
