"""Sources that cannot be used are refused by name, and nothing is left of the attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from backends.checkpoint import Run
from backends.importing.deposit import deposit
from backends.importing.material import ImportFailed
from backends.importing.sources import opened
from tests.backends.importing.samples import folder, gguf_file, model, wheel


def attempt(source: Path | str, run: Run) -> None:
    with opened(str(source)) as material:
        deposit(material, run)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def edit(path: Path, **changes: Any) -> None:
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | changes))


def drop_shard(source: Path) -> None:
    sorted(source.glob("*.safetensors"))[1].unlink()


def truncate(source: Path) -> None:
    path = sorted(source.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:100])


def drop_head(source: Path) -> None:
    edit(source / "config.json", tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (drop_shard, "is named in model.safetensors.index.json and is not there"),
        (truncate, r"model-00001-of-\d+\.safetensors"),
        (drop_head, "lm_head.weight is missing"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: edit(f / "config.json", model_type="gpt2"), "model_type 'gpt2'"),
        (lambda f: edit(f / "config.json", vocab_size=331), "embed_tokens.weight is"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "save_pretrained"),
    ],
)
def test_folders(harm: Callable[[Path], None], named: str, run: Run, tmp_path: Path) -> None:
    values, decoder = model("llama-tied")
    source = folder(tmp_path / "hf", values, decoder, shard="20KB")
    harm(source)
    with pytest.raises(ImportFailed, match=named):
        attempt(source, run)
    assert run.steps() == [] and not list(run.root.rglob(".staging*"))


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"general.architecture": "gemma"}, "general.architecture 'gemma'"),
        ({"llama.block_count": None}, "llama.block_count is missing"),
        ({"llama.block_count": 3}, "layers.2.input_layernorm.weight is missing"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count"),
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type 'longrope'"),
        ({"llama.expert_count": 8}, "experts"),
        ({"split.count": 2}, "one of several parts"),
        ({"cut": "grok-2"}, "tokenizer.ggml.pre 'grok-2'"),
    ],
)
def test_gguf_files(facts: dict[str, Any], named: str, run: Run, tmp_path: Path) -> None:
    _, decoder = model("llama")
    cut = facts.pop("cut", "default")
    source = gguf_file(tmp_path / "m.gguf", decoder, facts=facts, cut=cut)
    with pytest.raises(ImportFailed, match=named):
        attempt(source, run)
    assert run.steps() == []


def test_other_files(run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    (tmp_path / "m.bin").write_bytes(b"")
    (tmp_path / "m.pth").write_bytes(b"")
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    empty = wheel(tmp_path / "empty.whl")
    _, decoder = model("qwen2")
    files = [gguf_file(tmp_path / f"{name}.gguf", decoder) for name in ("a", "b")]
    for source, named in (
        (tmp_path / "m.gguf", "not a GGUF file"),
        (tmp_path / "m.bin", "none of .gguf, .whl and .pth"),
        (tmp_path / "m.pth", "only efficientnet-lite0"),
        (tmp_path / "bad.whl", "bad.whl"),
        (empty, "0 GGUF files"),
        (wheel(tmp_path / "two.whl", *files), "2 GGUF files"),
        ("pip:--index-url=x", "must be a package"),
        ("pip:../x", "must be a package"),
    ):
        with pytest.raises(ImportFailed, match=named):
            attempt(source, run)


def test_weights_that_are_no_numbers(run: Run, tmp_path: Path) -> None:
    values, decoder = model("llama")
    decoder.model.layers[0].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(ImportFailed, match=r"up_proj\.weight holds values"):
        attempt(folder(tmp_path / "hf", values, decoder), run)
