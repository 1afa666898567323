"""Which weights are live, which serve, and how one gives way to another.

Decides, and the engine does. add → serve → retire the old (its sequences may go on until a
deadline, then they move) → release it (once nobody uses it). Safe from any thread. Invariant: what
serves is live, and what is released is never run again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

Done = Callable[[], None]


class Versions:
    def __init__(self, serving: str) -> None:
        self.serving = serving
        self.live = {serving}
        self._retiring: dict[str, float] = {}
        self._releasing: dict[str, Done] = {}
        self._lock = threading.Lock()

    def check_new(self, version: str) -> None:
        """Raises ValueError where it is live already."""
        if version in self.live:
            raise ValueError(f"version {version} is live already")

    def add(self, version: str) -> None:
        """Raises ValueError where it is live already."""
        with self._lock:
            self.check_new(version)
            self.live.add(version)

    def swap(self, old: str, version: str) -> None:
        """The weights of what serves are others now."""
        with self._lock:
            self.live = self.live - {old} | {version}
            self.serving = version

    def serve(self, version: str) -> None:
        """Raises ValueError where it is not live, or is on its way out."""
        with self._lock:
            self._known(version)
            if version in self._releasing:
                raise ValueError(f"version {version} is being released")
            self._retiring.pop(version, None)
            self.serving = version

    def retire(self, version: str, deadline: float) -> None:
        """Raises ValueError where it serves: serve another first."""
        with self._lock:
            self._spare(version)
            self._retiring[version] = deadline

    def release(self, version: str, done: Done) -> None:
        """Raises ValueError where it serves."""
        with self._lock:
            self._spare(version)
            self._releasing[version] = done

    def due(self, now: float) -> list[str]:
        """Whose sequences move to what serves now."""
        if not self._retiring:
            return []
        with self._lock:
            due = [version for version, deadline in self._retiring.items() if deadline <= now]
            for version in due:
                del self._retiring[version]
            return due

    def leaving(self, unused: Callable[[str], bool]) -> list[tuple[str, Done]]:
        """Those to be dropped; they are live no more."""
        if not self._releasing:
            return []
        with self._lock:
            gone = [(v, done) for v, done in self._releasing.items() if unused(v)]
            for version, _ in gone:
                del self._releasing[version]
                self._retiring.pop(version, None)
                self.live.discard(version)
            return gone

    @property
    def next_due(self) -> float | None:
        with self._lock:
            return min(self._retiring.values(), default=None)

    def takes(self, version: str) -> bool:
        """Whether a sequence may ask for it."""
        return version in self.live and version not in self._releasing

    def _known(self, version: str) -> None:
        if version not in self.live:
            raise ValueError(f"version {version} is not live")

    def _spare(self, version: str) -> None:
        self._known(version)
        if version == self.serving:
            raise ValueError(f"version {version} serves")
