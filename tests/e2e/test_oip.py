"""Triton's own clients against real processes: every datatype, form and coding, ragged batches.

Where the hot path was compiled (`make compile`), the gateway uses the build, and so does this.
"""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.e2e.fleet import GatewayProcess
from tests.e2e.publishing import MODELS
from tests.gateway.oip.test_clients import FORMS, inputs, outputs, same

CODINGS = [None, "gzip", "deflate"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    folder = tmp_path_factory.mktemp("oip")
    config = ""
    for name, model in (("every", "every:Every"), ("joined", "ragged:JoinedSums")):
        (folder / f"{name}.toml").write_text(f'model = "{name}"\nclass = "{model}"\nthreads = 1\n')
        (folder / f"{model.partition(':')[0]}.py").write_text(
            (MODELS / f"{model.partition(':')[0]}.py").read_text()
        )
        config += (
            f'[[models]]\nname = "{name}"\n[[models.replicas]]\nname = "{name}"\n'
            f'spawn = "{name}.toml"\n'
        )
    running = GatewayProcess(folder, config)
    running.wait_ready()
    yield running
    assert running.stop() == 0, running.log
    assert "Traceback" not in running.log


@pytest.fixture
def address(gateway):
    return gateway.url.removeprefix("http://")


def test_every_datatype_in_every_form_and_coding(address):
    client = triton.InferenceServerClient(address, network_timeout=20)
    for given, wanted in product(FORMS, FORMS):
        same(client.infer("every", inputs(given), outputs=outputs(wanted)))
    for asked, answered in product(CODINGS, CODINGS):
        codings = {
            "request_compression_algorithm": asked,
            "response_compression_algorithm": answered,
        }
        for form in FORMS[:2]:
            result = client.infer("every", inputs(form), outputs=outputs(form), **codings)
            same(result)
            assert result.get_response()["model_version"] == "0-static"
    client.close()


async def test_the_asynchronous_client_and_rows_of_all_lengths(address):
    async with triton_aio.InferenceServerClient(address) as client:
        for coding in CODINGS:
            same(
                await client.infer(
                    "every",
                    inputs(FORMS[0]),
                    outputs=outputs(FORMS[3]),
                    response_compression_algorithm=coding,
                )
            )

        async def total(width: int) -> Any:
            x = triton.InferInput("x", [1, width], "FP32")
            x.set_data_from_numpy(np.full((1, width), 2.0, "f4"), binary_data=width % 2 == 0)
            return (await client.infer("joined", [x])).as_numpy("sum")[0, 0]

        widths = [1 + 7 * at % 101 for at in range(80)]
        assert await asyncio.gather(*map(total, widths)) == [2 * width for width in widths]


def test_statistics_agree_with_what_was_sent(address):
    client = triton.InferenceServerClient(address)

    def read() -> dict[str, Any]:
        (found,) = client.get_inference_statistics("joined")["model_stats"]
        return found

    before = read()
    x = triton.InferInput("x", [3, 5], "FP32")
    x.set_data_from_numpy(np.ones((3, 5), "f4"))
    for _ in range(4):
        client.infer("joined", [x])
    x.set_shape([3, 4])
    with pytest.raises(InferenceServerException, match="takes 48"):
        client.infer("joined", [x])
    after = read()
    assert after["inference_count"] - before["inference_count"] == 12
    assert after["execution_count"] - before["execution_count"] == 4
    for stage in ("success", "queue", "compute_infer"):
        old, new = (reading["inference_stats"][stage] for reading in (before, after))
        assert new["count"] - old["count"] == 4 and new["ns"] >= old["ns"]
    rows = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in after["batch_stats"]}
    assert rows[3] >= 4
    client.close()


def test_only_what_is_there_is_advertised(address):
    client = triton.InferenceServerClient(address)
    said = client.get_server_metadata()["extensions"]
    assert "model_repository" in said and "statistics" in said
    absent = {"system_shared_memory", "cuda_shared_memory", "sequence", "trace", "logging"}
    assert not absent & set(said) and "generate" not in said  # no model generates here
    client.close()
