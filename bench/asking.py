"""Asking a server before it is measured: does it answer, and rightly?

Owns single requests and the comparison with the reference. A server that
answers wrongly is not measured: its figures would say nothing.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.contenders import JSON, Contender
from bench.models import mlp
from bench.series import MeasureFailed

CHECKS = 20


def post(url: str, body: bytes, headers: Mapping[str, str], seconds: float = 30.0) -> bytes:
    """The body of a 200. Raises MeasureFailed for everything else."""
    request = urllib.request.Request(url, body, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            return bytes(reply.read())
    except urllib.error.HTTPError as error:
        said = error.read()[:200].decode(errors="replace")
        raise MeasureFailed(f"answered {error.code}: {said}") from error
    except OSError as error:
        raise MeasureFailed(f"did not answer: {error}") from error


def get_json(url: str) -> Any:
    """Raises MeasureFailed."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.loads(reply.read())
    except (OSError, ValueError) as error:
        raise MeasureFailed(f"{url}: {error}") from error


def check_mlp(contender: Contender, seed: int) -> None:
    """Raises MeasureFailed when an answer is not the reference's."""
    rng = np.random.default_rng(seed)
    for _ in range(CHECKS):
        x_1I = rng.normal(size=(1, mlp.INPUTS)).astype(np.float32)
        reply = post(contender.url, contender.request(x_1I), JSON)
        try:
            y_1O = contender.answer(reply)
        except (ValueError, LookupError, TypeError) as error:
            raise MeasureFailed(f"answered {reply[:200]!r}") from error
        if y_1O.shape != (1, mlp.OUTPUTS) or not np.allclose(
            y_1O, mlp.reference(x_1I), rtol=1e-4, atol=1e-5
        ):
            raise MeasureFailed(f"answered wrongly: {y_1O.tolist()}")
