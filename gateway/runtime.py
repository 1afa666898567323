"""The private folder of a running gateway: where its replicas' sockets lie.

Owns the folder and its removal, also of folders that a killed gateway could not remove: a lock that
the kernel drops with its process tells them apart. Nobody but our user can enter it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

PREFIX = "penstock-"
LOCK = "lock"
# What is made or removed takes no longer than this.
REMNANT_S = 60.0
# The path of a socket has at most 107 characters, and names of replicas take most of them.
LONGEST_BASE = 20


class RuntimeFolder:
    """Made and locked here, removed by `close`."""

    def __init__(self, base: Path | None = None) -> None:
        base = base or _base()
        _remove_abandoned(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        # Locked before it has its name: nobody finds it unlocked.
        unnamed = self.path / "unnamed"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / LOCK)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _base() -> Path:
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir()):
        if folder and len(folder) <= LONGEST_BASE and os.access(folder, os.W_OK):
            return Path(folder)
    return Path("/tmp")


def _remove_abandoned(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # just being made or removed, or that was cut short
            if _is_remnant(folder):
                shutil.rmtree(folder, ignore_errors=True)
            continue
        except OSError:  # not ours
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # its gateway runs
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _is_remnant(folder: Path) -> bool:
    """Whether a gateway was killed while it made or removed this: ours, for long, and nothing in it
    but what a gateway puts there."""
    try:
        found = folder.lstat()
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        if not mine or time.time() - found.st_mtime < REMNANT_S:
            return False
        names = [entry.name for entry in folder.iterdir()]
    except OSError:
        return False
    return bool(names) and all(name.endswith((".sock", ".port", "unnamed")) for name in names)
