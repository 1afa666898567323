"""What an import asks of its weights, and that a replica's loader then finds it so, or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel

from backends.checkpoint import Run, read_tensors
from backends.claim import ProbeMismatch
from backends.importing.deposit import deposit
from backends.importing.sources import opened
from backends.model import import_class
from backends.models.certain import MOST_TOKENS, SURE
from backends.models.efficientnet import EfficientNetLite
from backends.tensor.probe import check_probe
from backends.tensor.runner import Runner
from tests.backends.importing import samples


def imported(source: Path, folder: Path, dtype: str | None = "fp32") -> Run:
    run = Run(folder / "run")
    with opened(str(source)) as material:
        deposit(material, run, dtype=dtype)
    return run


def built(run: Run) -> Any:
    manifest = run.manifest(0)
    made = import_class(manifest.model["class"])(**manifest.model["config"])
    made.load_state_dict(read_tensors(run.folder(0), manifest))
    return made.eval()


def check(model: Any, run: Run) -> None:
    runner = Runner(torch.device("cpu"), lambda error, rows: None)
    probe = run.manifest(0).probe
    assert probe is not None
    with torch.inference_mode():
        check_probe(runner, model, model.signature, probe)


def test_a_language_model_is_asked_for_what_it_is_sure_of(tmp_path: Path) -> None:
    values, decoder = samples.model("llama")
    decoder.lm_head.weight.mul_(100)  # as sure as one that has learned something
    run = imported(samples.folder(tmp_path / "hf", values, decoder), tmp_path)
    probe = run.manifest(0).probe
    assert probe is not None
    prompt, tokens = probe.inputs["prompt"], probe.outputs["tokens"]
    assert 0 < len(tokens) <= MOST_TOKENS == 4
    logits = decoder(torch.tensor([[*prompt, *tokens]]))[0, len(prompt) - 1 : -1]
    best, chosen = logits.topk(2)
    assert chosen[:, 0].tolist() == tokens
    assert bool((best[:, 0] - best[:, 1] >= SURE).all())
    wanted = logits.log_softmax(-1).gather(1, chosen[:, :1])[:, 0]
    torch.testing.assert_close(
        torch.tensor(probe.outputs["logprobs"]), wanted, rtol=1e-4, atol=1e-3
    )


def test_one_that_is_sure_of_nothing_is_asked_nothing(tmp_path: Path) -> None:
    values, decoder = samples.model("llama")
    decoder.lm_head.weight.mul_(0.01)
    run = imported(samples.folder(tmp_path / "hf", values, decoder), tmp_path)
    assert run.manifest(0).probe is None


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_embedder_is_asked_for_two_texts(tmp_path: Path, dtype: str) -> None:
    words = ["the", "gate", "that", "water", "into", ".", "a", "its", "prey", "[UNK]"]
    library = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, "[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.enable_padding(length=30)
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertModel(
        BertConfig(vocab_size=60, intermediate_size=48, max_position_embeddings=40, **small)
    )
    bert.save_pretrained(tmp_path / "hf")
    library.save(str(tmp_path / "hf" / "tokenizer.json"))
    run = imported(tmp_path / "hf", tmp_path, dtype)
    model = built(run)
    check(model, run)
    probe = run.manifest(0).probe
    assert probe is not None and len(probe.inputs["input_ids"][0]) < 30, "nothing is padding"
    torch.nn.init.normal_(model.encoder.layer[0].intermediate["dense"].weight)
    with pytest.raises(ProbeMismatch, match="'embedding'"):
        check(model, run)


def test_a_classifier_is_asked_for_one_image(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite()
    torch.nn.init.normal_(network._fc.weight)
    source = tmp_path / "efficientnet-lite0.pth"
    torch.save(network.state_dict(), source)
    run = imported(source, tmp_path)
    model = built(run)
    check(model, run)
    assert run.manifest(0).probe.inputs == {"image": {"step": 7, "modulus": 251}}  # type: ignore[union-attr]
    torch.nn.init.normal_(model._fc.bias)
    with pytest.raises(ProbeMismatch, match="'probabilities'"):
        check(model, run)
