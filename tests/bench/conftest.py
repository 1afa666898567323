from __future__ import annotations

import pytest

from bench.serving import Server, python


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The URL of `answering`, in a process of its own."""
    log = tmp_path_factory.mktemp("answering") / "log"
    with Server("answering", python("-m", "tests.bench.answering"), log=log) as server:
        yield f"http://{server.wait_said('listening on (.*)')[1]}"
