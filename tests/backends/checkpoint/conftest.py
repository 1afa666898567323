"""Where this folder's tests write: many small syncs, so in memory where the system has that."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def place():
    """A folder for a module's long preparation."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="penstock-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def root(place, request):
    """An empty folder for one test's run; it does not exist yet."""
    folder = Path(tempfile.mkdtemp(dir=place)) / "run"
    yield folder
    shutil.rmtree(folder.parent)
