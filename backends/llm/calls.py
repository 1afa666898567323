"""The CALLs of all gateways, from their frame to the last piece of their answer.

Owns the table of live calls, on the event loop. The engine's outputs become pieces here: those of
one step, for one connection, are one frame. Invariants: each CALL gets exactly one terminal answer;
whatever ends a call early ends its sequences in the engine at once; a connection that takes nothing
is sent nothing, and what it is owed meanwhile is no more than its replies' text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import count
from typing import Any

from backends.errors import BackendError, BadFrame, Cancelled, DeadlineExceeded
from backends.events import Events
from backends.llm.asked import Asked
from backends.llm.generation import Generation, GenerationEngine, Output
from backends.llm.prepare import Preparation
from backends.llm.reply import Reply
from backends.llm.text import TextModel
from backends.server import Connection
from backends.wire import Buffer, Call, Frame, Piece, stream_frame

# A frame is sent in one go: longer replies go in several, so that others come in between.
MAX_PIECE, MAX_BATCH = 4 << 20, 16 << 20


class Live:
    """One call. `keys`: of its generations that the engine still works on, and their choices."""

    __slots__ = (
        "began",
        "body",
        "call",
        "connection",
        "first",
        "id",
        "keys",
        "last",
        "reply",
        "said",
    )

    def __init__(self, connection: Connection, id: int, call: Call, body: Buffer) -> None:
        self.connection, self.id, self.call = connection, id, call
        self.body = body
        self.began = time.monotonic()
        self.reply: Reply | None = None
        self.keys: dict[int, int] = {}
        # Whether a piece has gone out.
        self.said = False
        # When the first and the newest tokens came.
        self.first = self.last = 0.0

    @property
    def deadline(self) -> float | None:
        left = self.call.deadline_ms
        return None if left is None else self.began + left / 1000


class Ended:
    """What a call tells of the version that answered it: `tokens` of a choice in `seconds`."""

    __slots__ = ("failed", "seconds", "tokens", "version")

    def __init__(self, version: str, tokens: int, seconds: float, failed: bool) -> None:
        self.version, self.tokens, self.seconds, self.failed = version, tokens, seconds, failed


class Calls:
    """`engine` and `text` are asked for each call: versions come and go. `load` is what the final
    piece of an answer says of the replica; `ended` hears of each answer that came to an end."""

    def __init__(
        self,
        preparation: Preparation,
        events: Events,
        *,
        engine: Callable[[], GenerationEngine],
        text: Callable[[str | None], TextModel],
        load: Callable[[], dict[str, float]],
        ended: Callable[[Ended], None],
    ) -> None:
        self._preparation, self._events = preparation, events
        self._engine, self._text, self._load, self._ended = engine, text, load, ended
        self._loop = asyncio.get_running_loop()
        self._live: dict[tuple[Connection, int], Live] = {}
        self._generations: dict[int, tuple[Live, int]] = {}
        self._numbers = count(1)
        # Calls of connections that take nothing at the moment.
        self._behind: dict[Connection, dict[Live, None]] = {}
        self.done = self.failed = self.cancelled = 0

    def __len__(self) -> int:
        return len(self._live)

    # --------------------------------------------------------------------------------- what comes

    def take(self, connection: Connection, frame: Frame) -> None:
        """Raises BackendError for a call that will not be answered otherwise."""
        call = _read(frame)
        if (connection, frame.id) in self._live:
            raise BadFrame(f"a call with id {frame.id} is being answered on this connection")
        text = self._text(call.version)
        live = Live(connection, frame.id, call, frame.data)
        self._live[connection, frame.id] = live
        try:
            if self._preparation.quick(frame.data):
                self._begin(live, self._preparation.now(call.surface, frame.data, text))
            else:
                prepared = self._preparation.later(call.surface, frame.data, text)
                prepared.add_done_callback(lambda done: self._post(self._prepared, live, done))
        except BaseException:
            self.failed += 1
            self._forget(live)
            raise

    def cancel(self, connection: Connection, id: int) -> None:
        live = self._live.get((connection, id))
        if live is not None:
            self._drop(live)
            connection.fault(id, Cancelled("cancelled by the gateway").fault())

    def lost(self, connection: Connection) -> None:
        self._behind.pop(connection, None)
        for live in [live for key, live in self._live.items() if key[0] is connection]:
            self._drop(live)

    def close(self, error: BackendError) -> None:
        """What is still owed ends with `error`; nothing more is prepared."""
        self._preparation.close()
        for live in list(self._live.values()):
            self._fail(live, error)

    def outputs(self, outputs: Sequence[Output]) -> None:
        """Of one step of the engine."""
        now = time.monotonic()
        touched: dict[Connection, dict[Live, None]] = {}
        for output in outputs:
            found = self._generations.get(output.key)  # type: ignore[call-overload]
            if found is None:
                continue  # it was cancelled, and this is what was under way
            live, prompt = found
            self._feed(live, prompt, output, now)
            touched.setdefault(live.connection, {})[live] = None
        for connection, lives in touched.items():
            self._tell(connection, lives)

    # ------------------------------------------------------------------------------ what it becomes

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed: there is nobody left to answer
            return

    def _prepared(self, live: Live, prepared: Future[Asked]) -> None:
        self._preparation.done(live.body)
        if prepared.cancelled() or self._live.get((live.connection, live.id)) is not live:
            return
        try:
            self._begin(live, prepared.result())
        except BackendError as error:
            self._fail(live, error)
        except Exception as error:  # a defect of ours: this call fails, nothing else does
            self._events("call.crashed", surface=live.call.surface, error=repr(error))
            self._fail(live, BackendError(f"internal error: {error!r}"))

    def _begin(self, live: Live, asked: Asked) -> None:
        """Raises BackendError."""
        call = live.call
        deadline = live.deadline
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the prompt was read")
        live.body = b""
        live.reply = Reply(asked, self._text(call.version).tokenizer)
        engine = self._engine()
        for prompt, tokens in enumerate(asked.prompts):
            number = next(self._numbers)
            self._generations[number] = live, prompt
            live.keys[number] = asked.n
            engine.submit(
                Generation(
                    key=number,
                    prompt=tokens,
                    sampling=asked.sampling[prompt],
                    n=asked.n,
                    # The engine takes the lowest first, gateways mean the highest.
                    priority=-call.priority if asked.priority is None else asked.priority,
                    tenant=call.tenant,
                    deadline=deadline,
                    version=call.version,
                    mask=asked.mask,
                    prompt_logprobs=asked.prompt_logprobs,
                    submitted=live.began,
                )
            )

    def _feed(self, live: Live, prompt: int, output: Output, now: float) -> None:
        reply, key = live.reply, output.key
        assert reply is not None and isinstance(key, int)
        live.first = live.first or now
        live.last = now
        reply.feed(prompt, output)
        if output.finish is not None:
            live.keys[key] -= 1
        if not live.keys[key]:
            self._close(live, key)
        elif output.finish is None and reply.ended(prompt, output.choice):
            # Stop strings are not the engine's: it would go on.
            self._engine().cancel(key, output.choice)

    def _close(self, live: Live, key: int) -> None:
        del live.keys[key], self._generations[key]

    # ------------------------------------------------------------------------------- what is said

    def _tell(self, connection: Connection, lives: Iterable[Live]) -> None:
        if connection.paused:
            behind = self._behind.get(connection)
            if behind is None:
                behind = self._behind[connection] = {}
                connection.once_writable(lambda: self._catch_up(connection))
            behind.update(dict.fromkeys(lives))
            return
        batch: list[tuple[Piece, Buffer]] = []
        size = 0
        for live in lives:
            reply = live.reply
            assert reply is not None
            if reply.error is not None:
                self._fail(live, reply.error)
                continue
            data = reply.take()
            complete = reply.complete
            if data or complete:
                batch += self._pieces(live, data, complete)
                size += len(data)
            if size >= MAX_BATCH:
                connection.send(stream_frame(batch))
                batch, size = [], 0
            if complete:
                self._complete(live)
        if batch:
            connection.send(stream_frame(batch))

    def _catch_up(self, connection: Connection) -> None:
        lives = self._behind.pop(connection, {})
        self._tell(connection, [live for live in lives if self._is_live(live)])

    def _pieces(
        self, live: Live, data: bytes, final: bool, error: BackendError | None = None
    ) -> list[tuple[Piece, Buffer]]:
        reply = live.reply
        assert reply is not None
        parts = [data[at : at + MAX_PIECE] for at in range(0, len(data), MAX_PIECE)] or [b""]
        infos: list[dict[str, Any]] = [{} for _ in parts]
        if not live.said:
            live.said = True
            infos[0].update(type=reply.type, version=reply.version)
        if final:
            prompt, completion, cached = reply.usage
            infos[-1]["usage"] = {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "cached_tokens": cached,
            }
            infos[-1]["load"] = self._load()
        if error is not None:
            infos[-1]["fault"] = error.fault().to_json()
        last = len(parts) - 1
        return [
            (Piece(live.id, len(part), final and place == last, infos[place] or None), part)
            for place, part in enumerate(parts)
        ]

    # --------------------------------------------------------------------------------------- ends

    def _is_live(self, live: Live) -> bool:
        return self._live.get((live.connection, live.id)) is live

    def _complete(self, live: Live) -> None:
        self.done += 1
        self._forget(live)
        self._report(live, failed=False)

    def _fail(self, live: Live, error: BackendError) -> None:
        self.failed += 1
        self._forget(live)
        if live.said and live.reply is not None:
            # The client has the beginning: the end must say that it is none.
            pieces = self._pieces(live, live.reply.broken(error), True, error)
            live.connection.send(stream_frame(pieces))
        else:
            live.connection.fault(live.id, error.fault())
        self._report(live, failed=error.status == 500)

    def _drop(self, live: Live) -> None:
        """Nobody wants its answer any more."""
        self.cancelled += 1
        self._forget(live)

    def _forget(self, live: Live) -> None:
        """The one place where a call leaves the table; its sequences end with it."""
        del self._live[live.connection, live.id]
        behind = self._behind.get(live.connection)
        if behind is not None:
            behind.pop(live, None)
        for key in list(live.keys):
            self._close(live, key)
            self._engine().cancel(key)

    def _report(self, live: Live, *, failed: bool) -> None:
        reply = live.reply
        if reply is not None and reply.version:
            self._ended(Ended(reply.version, reply.length, live.last - live.first, failed))


def _read(frame: Frame) -> Call:
    meta = frame.json()
    try:
        call = Call.from_json(meta)
    except TypeError as error:
        raise BadFrame(f"CALL's meta is malformed: {error}") from error
    number = type(call.deadline_ms) in (int, float) or call.deadline_ms is None
    good = isinstance(call.surface, str) and isinstance(call.tenant, str) and number
    if not good or type(call.priority) is not int or not isinstance(call.version, str | None):
        raise BadFrame("CALL's meta is malformed")
    return call
