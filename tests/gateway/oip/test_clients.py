"""The real clients against the real lane: tritonclient, sync and aio, and plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import ml_dtypes
import numpy as np
import orjson
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from backends.wire import TensorSpec
from gateway.errors import Shed
from gateway.lane import Lane
from gateway.oip import OipSurface
from tests.gateway.oip.fakes import (
    DTYPES,
    FakeDirectory,
    FakeModel,
    FakeSwitchable,
    echo_answer,
    echo_signature,
)

ARRAYS: dict[str, np.ndarray] = {
    "BOOL": np.array([[True, False], [False, True]]),
    "BYTES": np.array([["a", ""], ["é", "bcd"]], dtype=np.object_),
    "BF16": np.array([[1.5, -2], [0, 3e38]], dtype=ml_dtypes.bfloat16),
} | {
    np_to_triton_dtype(np.dtype(kind)): np.array([[1, 100], [0, 7]], dtype=kind)
    for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
}  # fmt: skip
ALL = FakeModel("all", echo_signature(*(TensorSpec(d, d, (-1,)) for d in DTYPES)), echo_answer)


@contextlib.asynccontextmanager
async def served(*models: FakeModel) -> AsyncIterator[str]:
    """`host:port` of a lane with these models."""
    lane = Lane(OipSurface(FakeDirectory(*models)).resolve)
    server = await asyncio.get_running_loop().create_server(lane.protocol, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await lane.drain(1.0)


async def in_thread(url: str, work: Callable[[Any], Any]) -> Any:
    """The synchronous client, in a thread of its own."""

    def run() -> Any:
        client = triton.InferenceServerClient(url)
        try:
            return work(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)


def inputs(binary: Callable[[int], bool]) -> list[triton.InferInput]:
    made = []
    for at, (datatype, array) in enumerate(ARRAYS.items()):
        tensor = triton.InferInput(datatype, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=datatype == "BF16" or binary(at))
        made.append(tensor)
    return made


def outputs(binary: Callable[[int], bool]) -> list[triton.InferRequestedOutput]:
    return [
        triton.InferRequestedOutput(f"out_{d}", binary_data=d == "BF16" or binary(at))
        for at, d in enumerate(ARRAYS)
    ]


def same(result: triton.InferResult) -> None:
    for datatype, array in ARRAYS.items():
        found = result.as_numpy(f"out_{datatype}")
        if datatype == "BYTES":
            found = np.vectorize(lambda e: e.decode() if isinstance(e, bytes) else e)(found)
        np.testing.assert_array_equal(found, array)


FORMS: list[Callable[[int], bool]] = [
    lambda at: True,
    lambda at: False,
    lambda at: at % 2 == 0,
    lambda at: at % 3 == 0,
]


def test_every_datatype_is_asked_for():
    assert sorted(ARRAYS) == sorted(DTYPES)


async def test_tritonclient_infers_in_every_form():
    def work(client: Any) -> None:
        for given in FORMS:
            for wanted in FORMS:
                same(client.infer("all", inputs(given), outputs=outputs(wanted), request_id="7"))
            same(client.infer("all", inputs(given), model_version="2-def"))
        result = client.infer("all", inputs(FORMS[2]), request_id="7").get_response()
        assert (result["id"], result["model_version"]) == ("7", "3-abc")

    async with served(ALL) as url:
        await in_thread(url, work)


async def test_tritonclient_aio_infers_in_every_form():
    async with served(ALL) as url, triton_aio.InferenceServerClient(url) as client:
        for given in FORMS:
            for wanted in FORMS:
                same(await client.infer("all", inputs(given), outputs=outputs(wanted)))
        # It sends Accept-Encoding by itself and decodes nothing but infer answers.
        assert (await client.get_model_config("all"))["max_batch_size"] == 8
        assert await client.is_model_ready("all")


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
async def test_compression_both_ways(request_coding, response_coding):
    codings = {
        "request_compression_algorithm": request_coding,
        "response_compression_algorithm": response_coding,
    }

    def work(client: Any) -> None:
        same(client.infer("all", inputs(FORMS[2]), outputs=outputs(FORMS[3]), **codings))
        with pytest.raises(InferenceServerException) as caught:
            client.infer("all", inputs(FORMS[2])[1:], **codings)
        assert "BOOL is missing" in caught.value.message()

    async with served(ALL) as url:
        await in_thread(url, work)
        async with triton_aio.InferenceServerClient(url) as client:
            same(await client.infer("all", inputs(FORMS[2]), **codings))


async def test_tritonclient_knows_the_server_and_its_models():
    def work(client: Any) -> None:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("simple") and client.is_model_ready("simple", "2-def")
        assert not client.is_model_ready("simple", "9") and not client.is_model_ready("nope")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        metadata = client.get_model_metadata("simple")
        assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        assert client.get_model_config("simple")["output"][1]["data_type"] == "TYPE_INT64"
        index = client.get_model_repository_index()
        assert {line["state"] for line in index} == {"READY"}
        client.unload_model("simple")
        assert not client.is_model_ready("simple")
        client.load_model("simple")
        assert client.is_model_ready("simple")
        with pytest.raises(InferenceServerException, match="nothing can be overridden"):
            client.load_model("simple", config="{}")

    async with served(FakeSwitchable()) as url:
        await in_thread(url, work)


async def test_statistics_as_perf_analyzer_reads_them():
    """Differences between two readings, of all models and of one."""
    x = triton.InferInput("x", [2, 3], "FP32")
    x.set_data_from_numpy(np.zeros((2, 3), "f4"))

    def work(client: Any) -> list[dict[str, Any]]:
        readings = [client.get_inference_statistics()["model_stats"][0]]
        for _ in range(5):
            client.infer("simple", [x])
        readings.append(client.get_inference_statistics("simple", "3")["model_stats"][0])
        return readings

    async with served(FakeModel()) as url:
        before, after = await in_thread(url, work)
    assert before["inference_count"] == 0
    assert (after["inference_count"], after["execution_count"]) == (10, 5)
    # It takes the highest version, read as a number, and refuses unequal counts of computation.
    assert after["version"] == "3"
    stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert {after["inference_stats"][stage]["count"] for stage in stages} == {5}
    assert after["inference_stats"]["queue"]["ns"] == 5 * 1_500_000
    assert after["inference_stats"]["compute_infer"]["ns"] == 5 * 2_500_000
    assert after["batch_stats"][0]["batch_size"] == 2


async def test_classes_and_raw_bodies():
    def work(client: Any) -> None:
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.array([[1, 3, 2]], "f4"))
        for binary in (True, False):
            asked = triton.InferRequestedOutput("y", binary_data=binary, class_count=2)
            found = client.infer("simple", [x], outputs=[asked]).as_numpy("y")
            texts = [e.decode() if isinstance(e, bytes) else e for e in found.ravel()]
            assert texts == ["3.000000:1:dog", "2.000000:2:eel"]

    async with served(FakeModel()) as url:
        await in_thread(url, work)
        headers = {"Inference-Header-Content-Length": "0"}
        raw = np.array([1, 3, 2], "f4").tobytes()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"http://{url}/v2/models/simple/infer", data=raw, headers=headers
            ) as reply,
        ):
            length = int(reply.headers["Inference-Header-Content-Length"])
            assert (await reply.read())[length:] == raw + bytes(8)


async def test_errors_reach_the_clients_as_text():
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.zeros((1, 3), "f4"))
    shed = FakeModel("shed", run=lambda request: Shed("the queue is full", retry_after=1.0))

    def work(client: Any) -> None:
        for model, options, status, text in (
            ("nope", {}, "404", "no model 'nope'"),
            ("simple", {"model_version": "9"}, "404", "no version '9'"),
            ("simple", {"sequence_id": 5}, "400", "x-session-id"),
            ("simple", {"priority": 9}, "400", "levels go from 1"),
            ("simple", {"parameters": {"mine": 1}}, "400", "no model would see it"),
            ("shed", {}, "429", "the queue is full"),
        ):
            with pytest.raises(InferenceServerException) as caught:
                client.infer(model, [x], **options)
            assert caught.value.status() == status
            assert text in caught.value.message()
        for absent in (
            client.get_system_shared_memory_status,
            client.get_cuda_shared_memory_status,
            client.get_trace_settings,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="not offered") as caught:
                absent()
            assert caught.value.status() == "501"

    async with served(FakeModel(), shed) as url:
        await in_thread(url, work)
        async with triton_aio.InferenceServerClient(url) as client:
            with pytest.raises(InferenceServerException, match="the queue is full"):
                await client.infer("shed", [x])
            with pytest.raises(InferenceServerException, match="no model 'nope'"):
                await client.get_model_metadata("nope")


async def test_async_infer_over_many_connections():
    def run(url: str) -> None:
        client = triton.InferenceServerClient(url, concurrency=4)
        x = triton.InferInput("x", [1, 3], "FP32")
        pending = []
        for turn in range(40):
            x.set_data_from_numpy(np.full((1, 3), turn, "f4"), binary_data=turn % 2 == 0)
            pending.append(client.async_infer("simple", [x]))
        for turn, call in enumerate(pending):
            assert call.get_result().as_numpy("y").tolist() == [[turn] * 3]
        client.close()

    async with served(FakeModel()) as url:
        await asyncio.to_thread(run, url)


async def test_plain_http_as_other_clients_send_it():
    """Chunked bodies, names in the body, HEAD, wrong verbs; the connection lives through it all."""
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [[1, 2, 3]], "parameters": None}
    body = orjson.dumps({"model_name": "simple", "inputs": [x], "id": "i"})

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 7):
            yield body[at : at + 7]

    async with (
        served(FakeModel()) as url,
        aiohttp.ClientSession(f"http://{url}", connector=aiohttp.TCPConnector(limit=1)) as session,
    ):
        infer = "/v2/models/simple/infer"
        async with session.post(infer, data=chunks()) as reply:
            assert reply.status == 200 and reply.headers["X-Model-Version"] == "3-abc"
            assert (await reply.json())["outputs"][0]["data"] == [1, 2, 3]
        async with session.get(infer) as reply:
            assert (reply.status, reply.headers["Allow"]) == (405, "POST")
        async with session.head("/v2/health/ready") as reply:
            assert (reply.status, await reply.read()) == (200, b"")
        async with session.post("/v2/models/nope/infer", data=body) as reply:
            assert (reply.status, reply.content_type) == (404, "application/json")
        async with session.get("/v2/openapi.json") as reply:
            assert infer.replace("simple", "{model_name}") in (await reply.json())["paths"]
