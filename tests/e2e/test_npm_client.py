"""The unmodified npm package `openai` against a served model: skipped where there is no node."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from backends.importing.sources import cache
from tests.e2e.test_generation import Served
from tests.e2e.test_loop import until

SCRIPT = Path(__file__).with_name("openai_client.mjs")
PACKAGE = "openai@6.49.0"


@pytest.fixture(scope="module")
def client() -> Path:
    """The script beside the package, which is kept with other packages of the user."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    home = cache() / "npm" / PACKAGE
    if not (home / "node_modules" / "openai").is_dir():
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), PACKAGE]
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            pytest.skip(f"npm install {PACKAGE}: {last}")
    return Path(shutil.copy(SCRIPT, home))


@pytest.fixture
def served(tmp_path):
    served = Served(tmp_path)
    served.gateway.wait_ready()
    yield served
    assert served.gateway.stop() == 0, served.gateway.log


async def test_the_npm_package_does_all_that_the_python_one_does(client, served):
    def run() -> dict:
        command = ["node", str(client), f"{served.gateway.url}/v1", "tiny"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    said = await asyncio.to_thread(run)
    assert said["whole"] and 0 < said["tokens"] <= 24
    assert said["streamed"] == said["helper"] == said["response"] == said["whole"]
    assert (said["usage"], said["models"]) == (said["tokens"], ["tiny"])
    assert said["tools"] == ["BadRequestError", 400, "tools"]
    assert said["unknown"] == ["BadRequestError", 400, "bogus"]
    assert said["nowhere"] == ["NotFoundError", 404, "model"]
    assert said["embeddings"][:2] == ["NotFoundError", 404]
    # Its own limit, or the gateway's 504 of the same moment.
    assert said["timeout"][0] in ("APIConnectionTimeoutError", "InternalServerError")
    await until("what it left is gone", lambda: served.running() == 0)
    counters = served.counters()
    assert counters["cancelled"] >= 1 and counters["live"] == 0
