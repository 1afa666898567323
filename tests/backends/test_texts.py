"""Texts at a replica of tensors: OpenAI's embeddings over the wire, joined with everybody's."""

from __future__ import annotations

import base64
import struct

import orjson
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from backends.checkpoint import Staging, commit, publish
from backends.wire import Call, Kind, Signature, TensorSpec, split_stream
from tests.backends.fakes import Gateway

WORDS = {"[UNK]": 0, "one": 1, "two": 2, "three": 3}
FOLLOW = 'run = "run"\npoll_s = 0.02\n'


class Sums(nn.Module):
    """The embedding of tokens is their weighted sum, and how many they are."""

    reads_text, max_length = "input_ids", 6
    signature = Signature(
        (TensorSpec("input_ids", "INT64", (-1,)),),
        (TensorSpec("embedding", "FP32", (2,)),),
        max_batch_size=4,
        ragged="pad",
    )

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def infer(self, input_ids, input_ids_lengths):
        if bool((input_ids > 90).any()):
            raise ValueError("there is no token above 90")
        sums = input_ids.sum(1) * self.factor
        return {"embedding": torch.stack([sums, input_ids_lengths.float()], 1)}


@pytest.fixture
def published(run):
    def published(step: int, *, tokenizer: bool = True) -> str:
        model = Sums(float(step))
        staging = Staging(run, step, 0, 0)
        staging.create()
        parts = [staging.write_shard(0, 1, dict(model.state_dict()))]
        if tokenizer:
            library = Tokenizer(models.WordLevel(WORDS, "[UNK]"))
            library.pre_tokenizer = pre_tokenizers.Whitespace()
            parts.append(staging.write_file("model/tokenizer.json", library.to_str().encode()))
        manifest = commit(
            staging,
            parts,
            model={"class": "tests.backends.test_texts:Sums", "config": {}},
            expected={"factor": ((), torch.float32)},
            position=step,
        )
        publish(run, "stable", step)
        return manifest.version

    return published


class Client(Gateway):
    def embed(self, body, **call):
        data = body if isinstance(body, bytes) else orjson.dumps({"model": "m", **body})
        surface = call.pop("surface", "embeddings")
        return self.send(Kind.CALL, Call(surface=surface, **call).to_json(), [data])

    async def embedded(self, body, **call):
        id = self.embed(body, **call)
        frame = await self.stream(id)
        [(piece, data)] = split_stream(frame)
        assert (piece.id, piece.final) == (id, True)
        return orjson.loads(data), piece.info

    async def stream(self, id):
        def found():
            return next((f for f in self.frames if f.kind == Kind.STREAM and _of(f) == id), None)

        await self.until(lambda: found() is not None)
        frame = found()
        self.frames.remove(frame)
        return frame


def _of(frame):
    return split_stream(frame)[0][0].id


def vectors(body):
    return [item["embedding"] for item in body["data"]]


async def test_texts_and_tokens_of_any_length_come_back_in_their_order(serve, published):
    version = published(1)
    async with serve(FOLLOW) as replica:
        client = await Client.connect(replica.address)
        status = await client.state("ready")
        assert (status.kind, status.surfaces) == ("tensor", ("embeddings",))
        # More than a batch, of several lengths, tokens among the texts.
        texts = ["one two three", "two", [5, 6], "one one", "three two one", "two two", "what"]
        body, info = await client.embedded({"input": texts})
        wanted = [[6, 3], [2, 1], [11, 2], [2, 2], [6, 3], [4, 2], [0, 1]]
        assert vectors(body) == wanted
        assert [item["index"] for item in body["data"]] == list(range(7))
        assert body["usage"] == {"prompt_tokens": 14, "total_tokens": 14}
        assert info["version"] == version and info["usage"]["prompt_tokens"] == 14
        for alone in ("two", [2]):
            body, _ = await client.embedded({"input": alone})
            assert vectors(body) == [[2, 1]]
        body, _ = await client.embedded({"input": "two", "encoding_format": "base64"})
        packed = base64.b64decode(vectors(body)[0])
        assert struct.unpack("<2f", packed) == (2.0, 1.0)
        assert replica.settled
        await client.close()


BAD = [
    ({"input": ""}, "invalid_value", "input"),
    ({"input": []}, "invalid_value", "input"),
    ({"input": [1.5]}, "invalid_value", "input"),
    ({"input": ["one", 2]}, "invalid_value", "input"),
    ({"input": ["x"] * 2049}, "invalid_value", "input"),
    ({}, "missing_required_parameter", "input"),
    ({"input": "one " * 7}, "context_length_exceeded", "input"),
    ({"input": "one", "encoding_format": "int8"}, "invalid_value", "encoding_format"),
    ({"input": "one", "dimensions": 1}, "unsupported_parameter", "dimensions"),
    ({"input": "one", "colour": 1}, "unknown_parameter", "colour"),
    (b"{", "invalid_value", None),
    (b"[]", "invalid_value", None),
]


async def test_what_cannot_be_embedded_is_refused_by_its_field(serve, published):
    published(1)
    async with serve(FOLLOW) as replica:
        client = await Client.connect(replica.address)
        await client.state("ready")
        for body, code, param in BAD:
            fault = await client.fault(client.embed(body))
            assert (fault.status, fault.code, fault.param) == (400, code, param), (body, fault)
        fault = await client.fault(client.embed({"input": "x"}, surface="chat"))
        assert fault.status == 501 or fault.code == "unsupported"
        fault = await client.fault(client.embed({"input": "one"}, version="7-none"))
        assert fault.status == 404
        # One that the model refuses takes only its own call with it.
        bad, good = client.embed({"input": [[1], [99]]}), client.embed({"input": [[2]]})
        fault = await client.fault(bad)
        assert "no token above 90" in fault.message
        [(_, data)] = split_stream(await client.stream(good))
        assert vectors(orjson.loads(data)) == [[2, 1]]
        fault = await client.fault(client.embed({"input": "one"}, deadline_ms=0.0))
        assert fault.status == 504
        assert replica.settled
        await client.close()


async def test_a_reload_changes_what_texts_become(serve, published):
    published(1)
    async with serve(FOLLOW, versions=2, probation_s=0) as replica:
        client = await Client.connect(replica.address)
        old = (await client.state("ready")).version
        new = published(2)
        await client.serves(new)
        body, info = await client.embedded({"input": "three"})
        assert (vectors(body), info["version"]) == ([[6, 1]], new)
        body, info = await client.embedded({"input": "three"}, version=old)
        assert (vectors(body), info["version"]) == ([[3, 1]], old)
        await client.close()


async def test_without_a_tokenizer_it_takes_no_texts(serve, published):
    published(1, tokenizer=False)
    async with serve(FOLLOW) as replica:
        client = await Client.connect(replica.address)
        assert (await client.state("ready")).surfaces == ()
        fault = await client.fault(client.embed({"input": "one"}))
        assert "does not answer embeddings" in fault.message
        await client.close()


async def test_a_call_that_is_cancelled_or_whose_gateway_has_gone_leaves_nothing(serve, published):
    published(1)
    async with serve(FOLLOW) as replica:
        client = await Client.connect(replica.address)
        await client.state("ready")
        id = client.embed({"input": ["one"] * 64})
        client.send(Kind.CANCEL, None, id=id)
        other = await Client.connect(replica.address)
        await other.state("ready")
        other.embed({"input": ["two"] * 64})
        await other.close()
        body, _ = await client.embedded({"input": "two"})
        assert vectors(body) == [[2, 1]]
        await client.until(lambda: replica.settled)
        assert not len(replica._texts)
        await client.close()
