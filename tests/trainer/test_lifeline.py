"""A rank does not outlive its launcher, and nobody else is tied to its parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

RANK = """
import os, time
from trainer.lifeline import end_with_launcher
end_with_launcher(os.environ)
print(os.getpid(), flush=True)
time.sleep(60)
"""
# Starts the rank in a session of its own, as torchrun does, and waits.
LAUNCHER = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {RANK!r}], start_new_session=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the tie is Linux's")
@pytest.mark.parametrize("under_torchrun", [True, False])
def test_a_rank_ends_with_its_launcher(under_torchrun):
    environ = {key: value for key, value in os.environ.items() if key != "TORCHELASTIC_RUN_ID"}
    if under_torchrun:
        environ["TORCHELASTIC_RUN_ID"] = "test"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], env=environ, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    rank = int(launcher.stdout.readline())
    handle = os.pidfd_open(rank)
    try:
        launcher.kill()
        launcher.wait()
        ended, _, _ = select.select([handle], [], [], 20.0 if under_torchrun else 0.5)
        assert bool(ended) is under_torchrun
    finally:
        if not select.select([handle], [], [], 0)[0]:
            os.kill(rank, signal.SIGKILL)
        os.close(handle)
        launcher.stdout.close()
