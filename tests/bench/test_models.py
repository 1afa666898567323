from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench.asking import check_mlp
from bench.bodies import oip_answer, oip_request, rows_answer, rows_request
from bench.contenders import Contender, launch_tensor_floor
from bench.load import wrk
from bench.load.burst import Generator
from bench.models import image, mlp
from bench.series import MeasureFailed
from bench.serving import Server, python


def test_the_network_and_its_reference_agree():
    x_NI = np.random.default_rng(3).normal(size=(16, mlp.INPUTS)).astype(np.float32)
    found = mlp.Mlp().infer(torch.from_numpy(x_NI))["y"].detach().numpy()
    np.testing.assert_allclose(found, mlp.reference(x_NI), rtol=1e-5, atol=1e-6)


def test_the_image_model_and_its_reference_agree():
    pixels_NCHW = np.random.default_rng(3).random((2, *image.SHAPE), dtype=np.float32)
    found = image.Image().infer(torch.from_numpy(pixels_NCHW))["sum"]
    expected = [image.reference(pixels_CHW) for pixels_CHW in pixels_NCHW]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)
    assert pixels_NCHW[0].nbytes == image.BYTES


def test_json_bodies_read_back_to_the_same_floats():
    x_NI = np.random.default_rng(3).normal(size=(2, mlp.INPUTS)).astype(np.float32)
    asked = oip_request(x_NI)
    tensor = json.loads(asked)["inputs"][0]
    assert (tensor["shape"], tensor["datatype"]) == ([2, mlp.INPUTS], "FP32")
    np.testing.assert_array_equal(oip_answer(asked.replace(b"inputs", b"outputs")), x_NI)
    rows = json.dumps(json.loads(rows_request(x_NI))["x"]).encode()
    np.testing.assert_array_equal(rows_answer(rows), x_NI)


def test_the_floor_answers_rightly_and_under_load(tmp_path):
    contender = launch_tensor_floor(tmp_path)
    with contender.server:
        contender.ready()
        check_mlp(contender, seed=1)
        body = oip_request(np.ones((1, mlp.INPUTS), np.float32))
        for use_wrk in {False, wrk.available()}:
            headers = {"content-type": "application/json"}
            burst = Generator(use_wrk).burst(contender.url, body, headers, connections=4, seconds=1)
            assert burst.ok > 4
            assert 0 < burst.p50 <= burst.p99


def test_who_answers_wrongly_is_not_measured(base, tmp_path):
    server = Server("idle", python("-c", "import time; time.sleep(60)"), log=tmp_path / "log")
    with server:
        contender = Contender("wrong", server, lambda _: base)
        contender.ready()
        with pytest.raises(MeasureFailed, match="answered b'ok'"):
            check_mlp(contender, seed=1)
        contender.path = "/status/503"
        with pytest.raises(MeasureFailed, match="answered 503"):
            check_mlp(contender, seed=1)
