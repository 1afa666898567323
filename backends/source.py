"""Where a replica's checkpoints come from: a run's folder, or a copy of a run on an object store.

Owns the thread that keeps the copy up to date; the replica follows the copy like any other run.
Invariant: whatever becomes of the store, what was copied goes on being served.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from backends.checkpoint import CheckpointError, Run
from backends.checkpoint.mirror import refresh
from backends.checkpoint.objects import Store, is_url
from backends.config import ReplicaConfig
from backends.events import Events

# A look costs a request; a store is not asked more often than this, nor, while it fails, less
# often than that.
LEAST_S, MOST_S = 1.0, 30.0


class Source:
    """`run` is the folder to follow. `changed` is called, on the source's thread, when `problem`
    is another one."""

    def __init__(self, config: ReplicaConfig, events: Events, changed: Callable[[], None]) -> None:
        """Raises BadRecord for a store that nobody knows."""
        assert config.run is not None
        self._config, self._events, self._changed = config, events, changed
        self.problem = ""
        self._pulled: Callable[[], None] = lambda: None
        self._stop, self._nudge = threading.Event(), threading.Event()
        self._store: Store | None = None
        if is_url(config.run):
            self._store = Store(config.run, **config.store)
            self.run = Run(_cache(config))
        else:
            self.run = Run(config.folder(config.run))

    @property
    def place(self) -> str:
        """The store that `run` is a copy of; empty where it is the run itself."""
        return self._store.url if self._store is not None else ""

    def start(self, pulled: Callable[[], None]) -> None:
        """`pulled` is called, on the source's thread, when the copy's channel has moved."""
        self._pulled = pulled
        if self._store is not None:
            threading.Thread(target=self._keep, name="store", daemon=True).start()

    def look_again(self) -> None:
        self._nudge.set()

    def stop(self) -> None:
        """Does not wait for a store that hangs."""
        self._stop.set()
        self._nudge.set()

    def _keep(self) -> None:
        wait = 0.0
        while True:
            self._nudge.wait(wait)
            self._nudge.clear()
            if self._stop.is_set():
                return
            problem = self._refresh()
            wait = max(self._config.poll_s, LEAST_S)
            if problem:
                wait = min(max(wait, LEAST_S) * 4, MOST_S)
            if problem != self.problem:
                if problem:
                    self._events("store.failed", store=self._config.run, reason=problem)
                self.problem = problem
                self._changed()

    def _refresh(self) -> str:
        """What went wrong."""
        assert self._store is not None
        try:
            record = refresh(
                self._store,
                self.run,
                self._config.channel,
                bytes_per_second=self._config.load_bytes_per_second or None,
                cancelled=self._stop.is_set,
            )
        except (CheckpointError, OSError) as error:
            return str(error)
        if record is not None:
            self._events("store.pulled", version=record.version, generation=record.generation)
            self._pulled()
        return ""


def _cache(config: ReplicaConfig) -> Path:
    """A folder of this user's for that store, which all replicas of the machine share."""
    assert config.run is not None
    if config.cache is not None:
        return config.folder(config.cache)
    name = hashlib.sha256(config.run.rstrip("/").encode()).hexdigest()[:16]
    return Path.home() / ".cache" / "penstock" / "runs" / name
