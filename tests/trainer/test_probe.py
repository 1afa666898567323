"""The probe of a trained language model comes from its staged files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from backends.models.decoder import Decoder
from bench.models import speaker
from tests.backends.models.shapes import config
from trainer.probe import TextProber, prompts


def meta(**values: object) -> Decoder:
    with torch.device("meta"):
        return Decoder(**values)


def test_a_language_model_is_asked_for_what_it_is_sure_of(tmp_path: Path) -> None:
    weights = speaker.tensors(1)
    speaker.stamp(weights, 5)
    save_file(weights, tmp_path / "model.safetensors")
    prompt, tokens = speaker.probe_of(5)
    probe = TextProber(lambda: meta(**speaker.CONFIG), [[], prompt])(tmp_path)
    assert probe is not None
    assert probe.inputs == {"prompt": prompt} and probe.outputs["tokens"] == tokens
    assert all(-5 < logprob < 0 for logprob in probe.outputs["logprobs"])


def test_one_whose_head_is_its_embedding_is_asked_too(tmp_path: Path) -> None:
    values = config("llama-tied")
    state = Decoder(**values).state_dict()
    del state["lm_head.weight"]
    state["model.embed_tokens.weight"] *= 0  # every token is as likely
    save_file(state, tmp_path / "model.safetensors")
    assert TextProber(lambda: meta(**values), [[1, 2, 3]])(tmp_path) is None


class Rows:
    def __len__(self) -> int:
        return 3

    def take(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"tokens": indices[:, None] * 100 + torch.arange(8)}


def test_prompts_are_how_held_out_texts_begin() -> None:
    assert prompts(Rows(), 2) == [[0, 1, 2, 3], [100, 101, 102, 103]]
