"""Small models as others publish them: Hugging Face folders, GGUF files, wheels."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from backends.models.decoder import Decoder
from backends.models.rope import frequencies
from tests.backends.models.shapes import config

TEXTS = [
    "The penstock is the gate that meters water into turbines.",
    "It's 12345 litres; we'll see 67 more,  won't we?\n\n  Yes — naïve café 水門 🙂",
    "def f(x):\n\treturn x ** 2  # 3.14",
]
SPECIAL = ["<|end|>", "<|begin|>", "<|user|>"]
TEMPLATE = "{% for m in messages %}<|begin|>{{ m['content'] }}<|end|>{% endfor %}"


def tokenizer(before: Any) -> Tokenizer:
    made = Tokenizer(BPE())
    made.pre_tokenizer = before
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 3,
        BpeTrainer(
            vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def plain_tokenizer() -> Tokenizer:
    return tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))


def model(name: str, **more: Any) -> tuple[dict[str, Any], Decoder]:
    """With a vocabulary for `tokenizer`, and no bias or norm at its trivial value."""
    torch.manual_seed(5)
    values = config(name, vocab_size=330, **more)
    made = Decoder(**values).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return values, made


def stored(decoder: Decoder) -> dict[str, Tensor]:
    """Ties once."""
    state = decoder.state_dict()
    if decoder.config.tied:
        del state["lm_head.weight"]
    return state


def folder(path: Path, values: Mapping[str, Any], decoder: Decoder, *, shard: str = "1GB") -> Path:
    """As `transformers` saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    values = dict(values)
    other = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values)
    )
    other.load_state_dict(decoder.state_dict())
    other.save_pretrained(path, max_shard_size=shard)
    PreTrainedTokenizerFast(
        tokenizer_object=plain_tokenizer(), eos_token="<|end|>", chat_template=TEMPLATE
    ).save_pretrained(path)
    return path


def pairs(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of query and key rows."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{kind}"


def gguf_file(
    path: Path,
    decoder: Decoder,
    *,
    facts: Mapping[str, Any] | None = None,
    cut: str = "default",
    words: Tokenizer | None = None,
    quantised: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """As llama.cpp's converter writes it. `facts` replaces metadata; a value None leaves it out."""
    c = decoder.config
    said = {
        "context_length": c.context,
        "embedding_length": c.width,
        "block_count": c.layers,
        "feed_forward_length": c.hidden,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "rope.freq_base": c.rope.theta,
        "rope.dimension_count": c.head_dim,
    }
    said = {f"{c.architecture}.{key}": value for key, value in said.items()} | dict(facts or {})
    writer = gguf.GGUFWriter(path, c.architecture)
    for key, value in said.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    _add_tokenizer(writer, words or plain_tokenizer(), cut)
    for name, tensor in stored(decoder).items():
        heads = {"q_proj": c.heads, "k_proj": c.kv_heads}.get(name.split(".")[-2])
        if heads and c.architecture == "llama":
            tensor = pairs(tensor, heads)
        if quantised is not None and tensor.ndim == 2:
            data = gguf.quants.quantize(tensor.numpy(), quantised)
            writer.add_tensor(gguf_name(name), data, raw_dtype=quantised)
        else:
            writer.add_tensor(gguf_name(name), tensor.numpy())
    if c.rope.scaling == "llama3":
        plain = frequencies(type(c.rope)(c.rope.theta), c.head_dim)
        factors = plain / frequencies(c.rope, c.head_dim)
        writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, words: Tokenizer, cut: str) -> None:
    import json

    ids = words.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    merges = json.loads(words.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(ids["<|end|>"])
    writer.add_bos_token_id(ids["<|begin|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def wheel(path: Path, *files: Path, inside: str = "pkg") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, f"{inside}/{file.name}")
        archive.writestr(f"{inside}/__init__.py", "raise SystemExit('it was run')")
    return path
