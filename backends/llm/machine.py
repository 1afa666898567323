"""The engine of a replica from its first version on, and questions that are put to it from within.

Owns the engine's making (its first network brings the shape of the cache) and the generations that
no client asked for: the warm-up and the probe. Called from loader threads and the event loop.
Invariant: outputs of clients' generations go to `deliver` only, those of our own only to who asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from backends.checkpoint import Cancelled
from backends.claim import NotFinite
from backends.errors import ModelFailed, NotReady
from backends.llm.generation import (
    NOT_FINITE,
    EngineLoad,
    Generation,
    GenerationEngine,
    Output,
    Sampling,
)

if TYPE_CHECKING:
    from backends.llm.network import Network

# How often a question of our own looks whether anybody still wants its answer.
LOOK_S = 0.05
Emit = Callable[[list[Output]], None]


class VersionedEngine(GenerationEngine, Protocol):
    """The engine as a replica drives it; see `backends.llm.engine.Engine`."""

    def start(self) -> None: ...
    def close(self, timeout: float = 30.0) -> bool: ...
    def busy_s(self) -> float: ...
    def add(self, version: str, network: Network) -> None: ...
    def serve(self, version: str, done: Callable[[], None]) -> None: ...
    def retire(self, version: str, deadline: float) -> None: ...
    def release(self, version: str, done: Callable[[], None]) -> None: ...
    def swap(
        self,
        version: str,
        load: Callable[[Network], None],
        done: Callable[[BaseException | None], None],
    ) -> None: ...


# (network, version, emit, crashed) → an engine that serves it
Build = Callable[["Network", str, Emit, Callable[[BaseException], None]], VersionedEngine]


class Ranks(Protocol):
    """The other processes of a replica that has several; see `backends.llm.parallel.Crew`."""

    @property
    def lost(self) -> str: ...
    def close(self, seconds: float = 10.0) -> None: ...


class Machine:
    """`deliver` and `crashed` are called on the device thread."""

    def __init__(
        self,
        build: Build,
        deliver: Emit,
        crashed: Callable[[BaseException], None],
        ranks: Ranks | None = None,
    ) -> None:
        self._build, self._deliver, self._crashed = build, deliver, crashed
        self._ranks = ranks
        # Why what was loaded last computes slower than need be, and what to do; empty if it does
        # not.
        self.slow = ""
        self._engine: VersionedEngine | None = None
        # What the engine serves, and what is to be released once it serves another.
        self._serving = ""
        self._owed: list[tuple[str, Callable[[], None]]] = []
        self._asked: dict[Hashable, _Answer] = {}
        self._numbers = count()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def engine(self) -> VersionedEngine:
        """Raises NotReady before the first version."""
        if self._engine is None:
            raise NotReady("the replica has no version yet")
        return self._engine

    @property
    def serving(self) -> str:
        """The version that new generations begin under."""
        return self._serving

    @property
    def load(self) -> EngineLoad | None:
        return self._engine.load() if self._engine is not None else None

    def busy_s(self) -> float:
        return self._engine.busy_s() if self._engine is not None else 0.0

    @property
    def lost(self) -> str:
        """Why only new processes can serve; empty while these can."""
        return self._ranks.lost if self._ranks is not None else ""

    # --------------------------------------------------------------------------------- versions

    def add(self, version: str, network: Network) -> None:
        """Live from now on, and served by name only. One loader at a time. Raises ModelFailed where
        it does not fit beside what is live."""
        if self._engine is not None:
            try:
                self._engine.add(version, network)
            except ValueError as error:
                raise ModelFailed(f"{error}; a new replica could serve it") from error
            return
        engine = self._build(network, version, self._emit, self._crashed)
        with self._lock:
            if self._closed:
                raise Cancelled("the replica ends")
            self._engine, self._serving = engine, version
        engine.start()

    def withdraw(self, version: str) -> None:
        """What `add` did, before anything was served from it."""
        engine = self.engine
        if version == self._serving:
            # It is what the engine was made with: the next version makes another.
            self._engine = None
            engine.close()
        else:
            engine.release(version, lambda: None)

    def serve(self, version: str, done: Callable[[], None]) -> None:
        """`done` is called on the device thread once it is so."""
        self.engine.serve(version, done)
        self._serves(version)

    def exchange(
        self, version: str, twin: Network, done: Callable[[BaseException | None], None]
    ) -> None:
        """The twin and what serves get each other's weights; the device has `version` from then on,
        and what ran is computed again. `done` is called on the device thread: with an error, where
        the exchange may have stopped half-way."""

        def load(network: Any) -> None:
            network.exchange_(twin)

        self.engine.swap(version, load, done)
        self._serves(version)

    def _serves(self, version: str) -> None:
        self._serving = version
        owed, self._owed = self._owed, []
        for name, released in owed:
            self.release(name, 0.0, released)

    def release(self, version: str, seconds: float, done: Callable[[], None]) -> None:
        """What was begun under it has so long to end; then, and with nobody left, it is let go."""
        if version == self._serving:
            # The engine was made with it, and it never served: it goes when another serves.
            self._owed.append((version, done))
            return
        self.engine.retire(version, time.monotonic() + seconds)
        self.engine.release(version, done)

    def close(self, seconds: float) -> bool:
        """Whether its thread has ended."""
        with self._lock:
            self._closed = True
        ended = self._engine is None or self._engine.close(seconds)
        if self._ranks is not None:
            self._ranks.close(seconds)
        return ended

    # ------------------------------------------------------------------------------ our own asking

    def ask(
        self, version: str, prompt: list[int], tokens: int, cancelled: Callable[[], bool]
    ) -> tuple[list[int], list[float]]:
        """Greedy tokens of that version and their log-probabilities. Raises Cancelled, NotFinite,
        and ModelFailed where it does not come to an end."""
        key = ("own", next(self._numbers))
        answer = self._asked[key] = _Answer()
        sampling = Sampling(max_tokens=tokens, temperature=0.0, logprobs=0)
        engine = self.engine
        try:
            engine.submit(Generation(key=key, prompt=prompt, sampling=sampling, version=version))
            while not answer.ended.wait(LOOK_S):
                if cancelled():
                    engine.cancel(key)
                    raise Cancelled("another version is wanted")
        finally:
            del self._asked[key]
        if answer.error == NOT_FINITE:
            raise NotFinite(answer.error)
        if answer.finish not in ("stop", "length"):
            raise ModelFailed(answer.error or f"the generation ended by {answer.finish}")
        return answer.tokens, answer.logprobs

    def _emit(self, outputs: list[Output]) -> None:
        if self._asked:
            for output in outputs:
                answer = self._asked.get(output.key)
                if answer is not None:
                    answer.add(output)
        outputs = [output for output in outputs if not isinstance(output.key, tuple)]
        if outputs:
            self._deliver(outputs)


class _Answer:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.finish, self.error = "", ""
        self.ended = threading.Event()

    def add(self, output: Output) -> None:
        self.tokens += output.tokens
        self.logprobs += [entry.logprob for entry in output.logprobs or ()]
        if output.finish is not None:
            self.finish, self.error = output.finish, output.error
            self.ended.set()
