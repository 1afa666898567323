"""Texts: every token of every document once, kept on disk, split by content; and conversations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import DataConfig
from trainer.data import Chat, Text, TrainBatches, open_data
from trainer.data import corpus as corpus_module
from trainer.errors import BadPlugin

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(40):
        (folder / f"{index:02}.txt").write_text(f"document {index}: " + "né " * index)
    (folder / "more.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(20)))
    return folder


def text(folder: Path, **options: object) -> Text:
    chosen = {"length": 8, "held_out": 0.25, "cache": str(folder.parent / "cache")} | options
    return Text([str(folder / "*.txt"), str(folder / "*.jsonl")], **chosen)  # type: ignore[arg-type]


def stream(data: Text, part: str) -> list[int]:
    packed = getattr(data, part)()
    return packed.take(torch.arange(len(packed)))["tokens"].flatten().tolist()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_every_document_is_in_one_part_and_ends(texts, tokenizer):
    from tokenizers import Tokenizer

    data = text(texts, tokenizer=tokenizer, length=2)  # at most one token is cut off
    made = Tokenizer.from_str(data.files()["tokenizer.json"].decode())
    end = made.token_to_id("<|end|>")
    parts = {}
    for part in ("train", "held_out"):
        tokens = np.asarray(stream(data, part))
        pieces = np.split(tokens, np.flatnonzero(tokens == end) + 1)
        parts[part] = {made.decode(piece.tolist()) for piece in pieces if len(piece)}
    found = parts["train"] | parts["held_out"]
    wanted = {file.read_text() for file in texts.glob("*.txt")} | {f"line {i}" for i in range(20)}
    assert len(parts["held_out"]) > 4 and not parts["train"] & parts["held_out"]
    # Of each stream, the last document may lack its end.
    assert len(wanted - found) <= 2 and len(found) == 60
    assert made.get_vocab_size() == (257 if tokenizer == "bytes" else 300)


def test_texts_are_tokenised_once(texts, monkeypatch):
    first = stream(text(texts), "train")

    def never(*arguments: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(corpus_module.Corpus, "_tokenise", never)
    assert stream(text(texts), "train") == first
    (texts / "01.txt").write_text("changed")
    with pytest.raises(BadPlugin, match="tokenised again"):
        text(texts).files()


def test_other_texts_have_another_fingerprint(texts):
    before = text(texts).train().fingerprint
    (texts / "02.txt").write_text("changed")
    assert text(texts).train().fingerprint != before


def test_the_split_of_a_document_is_its_own(texts):
    """Others that come or go do not move it."""
    before = set(
        map(tuple, np.reshape(stream(text(texts, length=2), "held_out"), (-1, 2)).tolist())
    )
    (texts / "00.txt").unlink()
    after = set(map(tuple, np.reshape(stream(text(texts, length=2), "held_out"), (-1, 2)).tolist()))
    assert len(before & after) > 0.8 * len(before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 1}, "data.config.length"),
        ({"held_out": 1.5}, "data.config.held_out"),
        ({"tokenizer": "nowhere"}, "data.config.tokenizer: expected"),
        ({"tokenizer": "bpe:9"}, "258"),
    ],
)
def test_what_is_wrong_is_named(texts, options, said):
    with pytest.raises(BadPlugin, match=said):
        text(texts, **options)


def test_a_pattern_without_files_and_a_broken_line_are_named(texts):
    with pytest.raises(BadPlugin, match="no file matches"):
        Text([str(texts / "*.none")], 8)
    (texts / "more.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    with pytest.raises(BadPlugin, match=r"more.jsonl:2: lacks"):
        text(texts).files()
    with pytest.raises(BadPlugin, match=r"data.config.files: expected patterns"):
        Text(3, 8)  # type: ignore[arg-type]


def test_lines_may_begin_with_the_mark_of_windows(texts, tmp_path):
    marked = tmp_path / "marked"
    marked.mkdir()
    lines = "".join(f'{{"text": "☃ number {number}"}}\n' for number in range(8))
    (marked / "ü.jsonl").write_text("\ufeff" + lines)
    data = Text([str(marked / "*.jsonl")], 8, cache=str(tmp_path / "c"), held_out=0.5)
    assert len(data.train()) + len(data.held_out()) > 4


def test_too_little_text_is_refused(texts):
    config = {"files": [str(texts / "00.txt")], "length": 9000, "cache": str(texts / "c")}
    data = open_data(DataConfig(class_="trainer.data:Text", config=config, batch_size=1), texts)
    with pytest.raises(BadPlugin, match="no training samples"):
        TrainBatches(data.train, DataConfig(class_="x:X", batch_size=1), 0, 0, 1)


# ------------------------------------------------------------------------------ conversations


@pytest.fixture
def chat(texts, tmp_path) -> Chat:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name, content in text(texts).files().items():
        (folder / name).write_bytes(content)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    lines = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a" * (i + 1)}]
        for i in range(10)
    ]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    return Chat([str(file)], str(folder), 64, held_out_every=5)


def test_only_what_the_assistant_says_is_learnt(chat):
    from tokenizers import Tokenizer

    batch = chat.train().take(torch.tensor([0, 2]))
    made = Tokenizer.from_str(chat.files()["tokenizer.json"].decode())
    assert len(chat.train()) == 8 and len(chat.held_out()) == 2
    for tokens, labels, answer in zip(batch["tokens"], batch["labels"], ("a", "aaa"), strict=True):
        learnt = labels[labels != -100]
        assert made.decode(learnt.tolist(), skip_special_tokens=False) == f"{answer}<|end|>"
        shown = made.decode(tokens.tolist(), skip_special_tokens=False)
        assert shown.startswith("<user>q") and f"<assistant>{answer}<|end|>" in shown


def test_a_sample_counts_by_the_tokens_that_are_asked_for(chat):
    """So that the loss is the mean over tokens, however a batch is divided."""
    source, config = chat.train(), DataConfig(class_="x:X", batch_size=6)
    for ranks in (1, 2, 3):
        weights, tokens = [], []
        for rank in range(ranks):
            for piece in TrainBatches(source, config, 0, rank, ranks).at(0, torch.device("cpu")):
                weights.append(piece.weight)
                tokens.append(int((piece.batch["labels"][:, 1:] != -100).sum()))
        assert sum(weights) == pytest.approx(1)
        assert weights == pytest.approx([count / sum(tokens) for count in tokens])


def test_a_conversation_that_is_too_long_is_refused(chat, tmp_path):
    with pytest.raises(BadPlugin, match=r"conversation 1 has \d+ tokens, more than"):
        Chat([str(tmp_path / "talks.jsonl")], str(tmp_path / "tokenizer"), 4)


def test_a_template_that_refuses_says_why(chat, tmp_path):
    template = "{{ raise_exception('roles must alternate') }}"
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template)
    with pytest.raises(BadPlugin, match="refuses a line: roles must alternate"):
        Chat([str(tmp_path / "talks.jsonl")], str(tmp_path / "tokenizer"), 64)
