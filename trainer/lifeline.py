"""A rank's tie to torchrun: when the launcher is gone, nobody restarts the rank or stops it.

Owns one setting of the process, on Linux; elsewhere the rank lives on, as it always did. What was
committed is safe at any moment, so a rank that loses its launcher is simply ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

_PR_SET_PDEATHSIG = 1
PARENT = "PENSTOCK_PARENT"


def end_with_launcher(environ: Mapping[str, str]) -> None:
    """Under torchrun, or started by a server (which says so by PARENT): be killed when it is. Call
    it first: a rank may hang while it starts."""
    if sys.platform != "linux" or not {"TORCHELASTIC_RUN_ID", PARENT} & environ.keys():
        return
    launcher = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:  # it was gone before that
        os.kill(os.getpid(), signal.SIGKILL)
