"""Embeddings are those of `transformers`, whatever they were padded with."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertModel

from backends.checkpoint import Run, read_channel, read_tensors
from backends.importing.deposit import deposit
from backends.importing.sources import opened
from backends.models.embedder import BertEmbedder

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    return BertModel(BertConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def embedder(bert):
    ours = BertEmbedder(**bert.config.to_dict()).eval()
    ours.load_state_dict(bert.state_dict(), strict=False)
    return ours


def reference(bert, texts):
    """Each alone, by the sentence-transformers recipe: the mean of its tokens, normalised."""
    with torch.no_grad():
        means = [bert(torch.tensor([text])).last_hidden_state.mean(1) for text in texts]
    return torch.nn.functional.normalize(torch.cat(means), dim=-1)


def padded(texts, with_=0):
    longest = max(map(len, texts))
    rows = [text + [with_] * (longest - len(text)) for text in texts]
    return torch.tensor(rows), torch.tensor([len(text) for text in texts], dtype=torch.int32)


def test_a_batch_of_lengths_is_embedded_as_each_text_alone(bert, embedder):
    texts = [[2, 5, 9, 3], [2, 7, 3], [2, *range(10, 40), 3], [2]]
    found = embedder.infer(*padded(texts))["embedding"]
    torch.testing.assert_close(found, reference(bert, texts), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(embedder.infer(*padded(texts, with_=31))["embedding"], found)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))


def test_what_is_no_token_or_too_long_is_refused(embedder):
    for token in (-1, SIZES["vocab_size"]):
        with pytest.raises(ValueError, match="input_ids must be from 0 to 59"):
            embedder.infer(*padded([[2, token]]))
    with pytest.raises(ValueError, match="41 tokens, at most 40"):
        embedder.infer(*padded([[1] * 41]))


@pytest.mark.parametrize("key", ["position_embedding_type", "hidden_act"])
def test_another_kind_of_bert_is_refused_by_its_key(key):
    with pytest.raises(ValueError, match=key):
        BertEmbedder(**{**BertConfig(**SIZES).to_dict(), key: "other"})


def test_a_folder_becomes_a_version_that_both_can_load(bert, embedder, tmp_path):
    folder = tmp_path / "tiny"
    bert.save_pretrained(folder)
    Tokenizer(models.WordLevel({"the": 1}, "the")).save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    run = Run(tmp_path / "run")
    with opened(str(folder)) as material:
        deposit(material, run)
    channel = read_channel(run, "stable")
    manifest = run.manifest(channel.step)
    assert manifest.model["class"] == "backends.models.embedder:BertEmbedder"
    ours = BertEmbedder(**manifest.model["config"]).eval()
    assert ours.max_length == 16
    ours.load_state_dict(read_tensors(run.folder(channel.step), manifest))
    texts = [[2, 5, 9, 3], [2, 7, 3]]
    found = ours.infer(*padded(texts))["embedding"]
    torch.testing.assert_close(found, embedder.infer(*padded(texts))["embedding"])
    again = BertModel.from_pretrained(run.folder(channel.step) / "model").eval()
    torch.testing.assert_close(found, reference(again, texts), rtol=1e-5, atol=1e-6)
