"""Hugging Face folders: `config.json`, safetensors in one file or many, the tokenizer's files.

Owns the reading; changes nothing in the folder. Weights in pickles are refused: reading them runs
what they contain. Invariant: what it returns names only tensors that are in the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError, safe_open
from torch import Tensor

from backends.importing.material import ImportFailed, Material

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Beside tokenizer.json, which must be there. Python in such folders is neither copied nor run.
SENTENCES = "sentence_bert_config.json"
COPIED = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# Files of before 2024 hold what is computed from the config.
COMPUTED = ".rotary_emb.inv_freq"


def is_folder(path: Path) -> bool:
    return (path / "config.json").is_file()


def read_folder(folder: Path) -> Material:
    """Raises ImportFailed."""
    config = _json(folder / "config.json")
    if (folder / SENTENCES).is_file():  # of a sentence-transformers model
        config |= {"max_seq_length": _json(folder / SENTENCES).get("max_seq_length")}
    where = _where(folder)
    shapes = {name: shape for file in sorted(set(where.values())) for name, shape in _head(file)}
    missing = sorted(where.keys() - shapes.keys())
    if missing:
        raise ImportFailed(f"{where[missing[0]]}: tensor {missing[0]}, named in {INDEX}, is absent")

    def read(name: str) -> Tensor:
        with safe_open(where[name], framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    kept = {name: shape for name, shape in shapes.items() if not name.endswith(COMPUTED)}
    return Material(folder.name, config, kept, read, _files(folder, config))


def _where(folder: Path) -> dict[str, Path]:
    """tensor → its file."""
    if (folder / INDEX).is_file():
        table = _json(folder / INDEX).get("weight_map")
        if not isinstance(table, dict):
            raise ImportFailed(f"{folder / INDEX}: weight_map must be a table")
        found = {name: folder / Path(str(file)).name for name, file in table.items()}
        for path in sorted(set(found.values())):
            if not path.is_file():
                raise ImportFailed(f"{path} is named in {INDEX} and is not there")
        return found
    if (folder / SINGLE).is_file():
        return {name: folder / SINGLE for name, _ in _head(folder / SINGLE)}
    raise ImportFailed(
        f"{folder} has neither {SINGLE} nor {INDEX}; save the model with "
        "`save_pretrained(folder, safe_serialization=True)`"
    )


def _head(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="pt") as file:
            return [(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ImportFailed(f"{path}: {error}") from error


def _files(folder: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    if not (folder / "tokenizer.json").is_file():
        raise ImportFailed(
            f"{folder} has no tokenizer.json; make it with "
            f"`AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')`"
        )
    found = {name: (folder / name).read_bytes() for name in COPIED if (folder / name).is_file()}
    found["tokenizer.json"] = (folder / "tokenizer.json").read_bytes()
    path = folder / "tokenizer_config.json"
    tokenizer = _json(path) if path.is_file() else {"tokenizer_class": "PreTrainedTokenizerFast"}
    template = found.get("chat_template.jinja")
    if template is not None:
        tokenizer.setdefault("chat_template", template.decode())
    found["tokenizer_config.json"] = dump(tokenizer)
    path = folder / "generation_config.json"
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    default = {key: config[key] for key in keys if config.get(key) is not None}
    found["generation_config.json"] = dump(_json(path) if path.is_file() else default)
    return found


def dump(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ImportFailed(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ImportFailed(f"{path} must hold a JSON object")
    return value
