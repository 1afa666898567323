"""The versions that a language-model replica answers by, and how one takes another's place.

Owns the replica's side of a swap, on the event loop's thread; the device's side is the machine's.
Invariants: a version can be asked for by its name before anything is answered by it; one that has
room only in another's place is never live beside it.
"""

from __future__ import annotations

from collections.abc import Callable

from backends.config import ReplicaConfig
from backends.errors import NotReady, VersionNotFound
from backends.events import Events
from backends.llm.loading import LlmVersion
from backends.llm.machine import Machine
from backends.llm.text import TextModel
from backends.standing import Standing


class Serving:
    """For the follower, its `Host`. `post` has the loop call something, `broken` is told why only a
    new process can serve."""

    def __init__(
        self,
        config: ReplicaConfig,
        machine: Machine,
        standing: Standing[LlmVersion],
        events: Events,
        *,
        post: Callable[..., None],
        changed: Callable[[], None],
        broken: Callable[[str], None],
    ) -> None:
        self._config, self._machine, self._standing = config, machine, standing
        self._events, self._post, self.changed, self._broken = events, post, changed, broken

    def text(self, version: str | None) -> TextModel:
        """Of that version, or of what serves."""
        if version is not None:
            versions = self._standing.versions
            found = versions.get(version)
            if found is None:
                live = ", ".join(versions) or "none"
                raise VersionNotFound(f"version {version} is not live here; live are {live}")
            return found.text
        serving = self._standing.serving
        if serving is None:
            raise NotReady("the replica has no version yet")
        return serving.text

    def swap(
        self, version: LlmVersion, fallback: LlmVersion | None, done: Callable[[], None]
    ) -> None:
        """`fallback` stays live by itself, until it is released."""
        machine, twin = self._machine, version.twin
        if twin is not None:
            machine.exchange(
                version.name, twin, lambda error: self._post(self._exchanged, version, error, done)
            )
            return
        # From now on: what is asked between now and the swap may already be answered by it.
        self._standing.versions[version.name] = version
        machine.serve(version.name, lambda: self._post(self._swapped, version, done))

    def _swapped(self, version: LlmVersion, done: Callable[[], None]) -> None:
        before, self._standing.serving = self._standing.serving, version
        if before is None:
            self._events("ready", version=version.name)
            if self._machine.slow:
                self._events("slow", reason=self._machine.slow)
        done()
        self.changed()

    def _exchanged(
        self, version: LlmVersion, error: BaseException | None, done: Callable[[], None]
    ) -> None:
        if error is not None:
            self._broken(f"the weights of two versions were exchanged in part: {error}")
            return
        before, self._standing.serving = self._standing.serving, version
        assert before is not None
        before.twin, version.twin = version.twin, None
        self._standing.versions.pop(before.name, None)
        self._standing.versions[version.name] = version
        done()
        self.changed()

    def commit(self) -> None:
        """The old version goes by its release."""

    def release(self, version: LlmVersion, done: Callable[[], None]) -> None:
        self._standing.versions.pop(version.name, None)
        if version.twin is not None:
            version.twin = None
            self._post(done)
            return
        finish_s = self._config.finish_s
        self._machine.release(version.name, finish_s, lambda: self._post(done))
