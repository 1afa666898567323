"""One trainer a run: a lock on `<run>/trainer.lock` that the kernel frees when its holder dies.

Owns the file; what it says is for people only. Invariant: while one process holds the lock, every
other `RunLock` of the same folder raises RunBusy, naming the holder.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from trainer.errors import RunBusy, RunUnwritable


class RunLock:
    """Held from construction until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(folder / "trainer.lock", flags, 0o644)
        except OSError as error:
            raise RunUnwritable(
                f"run: nothing can be written into {folder}: {error.strerror}; name another with "
                "run=FOLDER"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._fd)
            os.close(self._fd)
            raise RunBusy(
                f"{folder} is being trained by {holder}; wait for it, stop it, or give this "
                "training a folder of its own with run=FOLDER"
            ) from None
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _holder(fd: int) -> str:
    with suppress(ValueError, KeyError, TypeError):
        value = json.loads(os.pread(fd, 1000, 0))
        return f"process {value['pid']} on {value['host']} since {value['since']}"
    return "another process"
