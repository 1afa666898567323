"""Fine-tuning: from others' weights, whole or by low-rank updates, to files that others load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from backends.checkpoint import Run, read_channel, read_tensors
from tests.trainer.ranks import weight_hashes
from tests.trainer.tiny import DECODER
from trainer.config import load
from trainer.errors import BadPlugin, ConfigError, RunMismatch
from trainer.process import train
from trainer.source import open_source

TOKENS = torch.arange(12).reshape(2, 6)
LORA = ("lora.rank=4", 'lora.targets=["*.q_proj", "*.down_proj"]', "data.micro_batch=8")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    Tokenizer(WordLevel({"x": 0}, "x")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "x"}')
    return folder


@pytest.fixture
def tune(tmp_path, foreign):
    def start(*overrides: str, run: str = "run", init: object = foreign) -> Path:
        text = DECODER.format(run=tmp_path / run)
        head, _, rest = text.partition("[model]")
        rest = rest[rest.index("[data]") :]
        path = tmp_path / "tune.toml"
        path.write_text(f'{head}[model]\ninit = "{init}"\n\n{rest}')
        assert train(load(path, {}, overrides), {}) == 0
        return tmp_path / run

    return start


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(TOKENS).logits


def model_folder(run: Path, step: int) -> Path:
    return Run(run).folder(step) / "model"


def test_training_begins_with_the_weights_that_it_is_given(tune, foreign):
    run = tune("steps=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0")
    torch.testing.assert_close(logits(model_folder(run, 1)), logits(foreign))
    manifest = Run(run).manifest(1)
    assert manifest.model["class"] == "backends.models.decoder:Decoder"
    assert "model/tokenizer.json" in manifest.files


def test_all_of_it_learns(tune, foreign):
    run = tune()
    before, after = load_file(foreign / "model.safetensors"), weight_hashes(run, 4)
    tensors = read_tensors(Run(run).folder(4), Run(run).manifest(4))
    assert all(not torch.equal(before[name], tensors[name]) for name in after)


def test_updates_are_merged_and_the_rest_stays(tune, foreign):
    run = tune(*LORA)
    before = load_file(foreign / "model.safetensors")
    tensors = read_tensors(Run(run).folder(4), Run(run).manifest(4))
    before["lm_head.weight"] = before["model.embed_tokens.weight"]
    changed = {name for name in tensors if not torch.equal(before[name], tensors[name])}
    wanted = {n for n in before if n.endswith(("q_proj.weight", "down_proj.weight"))}
    assert changed == wanted and set(tensors) == set(before)
    assert (logits(model_folder(run, 4)) - logits(foreign)).abs().max() > 1e-3
    # The resume state has what learns, not what can be read again.
    names = (Run(run).folder(4) / "state" / ".metadata").read_bytes()
    assert b"lora_a" in names and b"model.model.norm.weight" not in names


def test_what_is_evaluated_is_what_is_published(tune):
    """The merged model in transformers has the loss that was measured."""
    from transformers import AutoModelForCausalLM

    from tests.trainer.tiny import Sentences

    run = tune(*LORA)
    tokens = Sentences().held_out()["tokens"]
    model = AutoModelForCausalLM.from_pretrained(model_folder(run, 4), dtype=torch.float32)
    with torch.no_grad():
        loss = float(model(tokens, labels=tokens).loss)
    assert Run(run).manifest(4).evaluation["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("options", [(), LORA, ("optimizer.ema=0.9",)])
def test_fine_tuning_goes_on_bit_by_bit(tune, options):
    whole = tune(*options, run="whole")
    tune(*options, "steps=2", run="halves")
    halves = tune(*options, run="halves")
    assert weight_hashes(halves, 4) == weight_hashes(whole, 4)


def test_other_weights_to_start_from_are_another_run(tune, foreign, tmp_path):
    tune("steps=2")
    with pytest.raises(RunMismatch, match="trained with origin"):
        tune(*LORA)


def test_a_run_goes_on_from_what_was_imported_into_it(tune, tmp_path, foreign):
    """As a replica that follows its channel needs it."""
    from backends.importing.deposit import deposit
    from backends.importing.huggingface import read_folder

    run = tmp_path / "run"
    deposit(read_folder(foreign), Run(run), dtype="fp32")
    with pytest.raises(ConfigError, match="name the step"):
        tune(init=run)
    with pytest.raises(ConfigError, match="keep_every"):
        tune(init=f"{run}@0")
    tune("checkpoint.keep_every=100", "publish.channel=stable", init=f"{run}@0")
    assert Run(run).steps() == [0, 2, 4]
    assert Run(run).manifest(2).parent == Run(run).manifest(0).hash
    channel = read_channel(Run(run), "stable")
    assert channel is not None and (channel.step, channel.generation) == (4, 2)


def test_an_average_is_evaluated_and_published(tune):
    """With a decay of nearly nothing it is the weights themselves."""
    plain, fast = tune(run="plain"), tune("optimizer.ema=1e-9", run="fast")
    slow = tune("optimizer.ema=0.999", run="slow")
    weights = {
        run: read_tensors(Run(run).folder(4), Run(run).manifest(4))["model.norm.weight"]
        for run in (plain, fast, slow)
    }
    torch.testing.assert_close(weights[fast], weights[plain])
    assert (weights[slow] - weights[plain]).abs().max() > 1e-4
    assert Run(slow).manifest(4).evaluation["loss"] > Run(plain).manifest(4).evaluation["loss"]


def test_files_may_be_of_half_the_size(tune):
    run = tune("checkpoint.dtype=bf16")
    assert {tensor.dtype for tensor in Run(run).manifest(4).tensors.values()} == {"BF16"}
    assert logits(model_folder(run, 4)).isfinite().all()


@pytest.mark.parametrize(
    ("what", "said"),
    [("nowhere", "is neither a run"), ("run@7", "step"), ("run@beta", "no channel 'beta'")],
)
def test_what_cannot_be_started_from_is_named(tune, tmp_path, monkeypatch, what, said):
    tune("steps=1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadPlugin, match=said):
        open_source(what)


def test_a_pattern_that_matches_nothing_is_named(tune):
    with pytest.raises(BadPlugin, match=r"lora.targets: no Linear .* '\*.query'"):
        tune("lora.rank=2", 'lora.targets=["*.query"]')
