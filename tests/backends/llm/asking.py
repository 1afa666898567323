"""A desk of calls with a scripted engine behind it, for tests: bodies in, replies out."""

from __future__ import annotations

from typing import Any

import orjson

from backends.errors import VersionNotFound
from backends.llm.calls import Calls, Ended
from backends.llm.prepare import Preparation
from backends.llm.text import TextModel
from backends.wire import Call, Decoder, Frame, Kind, split_stream
from tests.backends.llm.scripted import (
    FakeConnection,
    Script,
    ScriptedEngine,
    setting,
    text_model,
)


class Desk:
    """`ask` gives the id of a call; `reply` its bytes so far and the infos of its pieces."""

    def __init__(self, script: Script | str = "Hello.", text: TextModel | None = None) -> None:
        self.text = text or text_model()
        self.engine = ScriptedEngine(self.text, script)
        self.ended: list[Ended] = []
        self.preparation = Preparation(setting())
        self.calls = Calls(
            self.preparation,
            lambda event, **fields: None,
            engine=lambda: self.engine,
            text=self._text,
            load=lambda: {"pages_free": 10.0},
            ended=self.ended.append,
        )
        self.engine.emit = self.calls.outputs
        self.connection = FakeConnection()
        self._ids = 0

    def _text(self, version: str | None) -> TextModel:
        if version not in (None, "1-a"):
            raise VersionNotFound(f"version {version} is not live here")
        return self.text

    def ask(self, surface: str, body: Any, connection: Any = None, **meta: Any) -> int:
        """Raises what the call is refused with."""
        self._ids += 1
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        called = orjson.dumps(Call(surface=surface, **meta).to_json())
        frame = Frame(Kind.CALL, self._ids, called, memoryview(data))
        self.calls.take(connection or self.connection, frame)
        return self._ids

    def answer(self, surface: str, body: Any, **meta: Any) -> bytes:
        """The whole reply, in as many steps as it takes."""
        id = self.ask(surface, body, **meta)
        self.engine.finish()
        data, infos = self.reply(id)
        assert infos[-1][0], "the last piece is final"
        return data

    def json(self, surface: str, body: Any, **meta: Any) -> Any:
        return orjson.loads(self.answer(surface, body, **meta))

    def events(self, surface: str, body: Any, **meta: Any) -> list[Any]:
        return events(self.answer(surface, {**body, "stream": True}, **meta))

    def frames(self, connection: FakeConnection | None = None) -> list[Frame]:
        decoder = Decoder()
        return [
            frame for sent in (connection or self.connection).sent for frame in decoder.feed(sent)
        ]

    def reply(
        self, id: int, connection: FakeConnection | None = None
    ) -> tuple[bytes, list[tuple[bool, Any]]]:
        data, infos = b"", []
        for frame in self.frames(connection):
            for piece, part in split_stream(frame):
                if piece.id == id:
                    data += bytes(part)
                    infos.append((piece.final, piece.info))
        return data, infos


def events(data: bytes) -> list[Any]:
    """The JSON of each event; "[DONE]" as it is."""
    found = []
    for block in data.split(b"\n\n"):
        for line in block.splitlines():
            if line.startswith(b"data: "):
                text = line.removeprefix(b"data: ")
                found.append("[DONE]" if text == b"[DONE]" else orjson.loads(text))
    return found
