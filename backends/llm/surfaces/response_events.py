"""The replies of `/v1/responses`: a response as one JSON body, or as the events of its making.

Owns the form of response objects, their output items and the `response.*` events, as OpenAI's API
defines them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import orjson

from backends.llm.asked import Delta, Span, Usage
from backends.llm.surfaces.events import JSON, SSE, error_body, named_event
from backends.llm.surfaces.setting import Setting
from backends.llm.toolformat import ToolCall, ToolFormat
from backends.wire import Fault


class Items:
    """The output items so far: at most one message at a time, and calls of functions."""

    def __init__(self, tools: ToolFormat | None) -> None:
        self._parser = tools.parser() if tools else None
        self.items: list[dict[str, Any]] = []

    def read(self, delta: Delta) -> list[str | ToolCall]:
        if self._parser is None:
            return [delta.text] if delta.text else []
        return self._parser.feed(delta.text, final=delta.finish is not None)

    @property
    def message(self) -> dict[str, Any] | None:
        """The message that is being written."""
        last = self.items[-1] if self.items else None
        return last if last is not None and last["type"] == "message" else None

    def open(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "id": f"msg_{Setting.new_id()}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self.items.append(message)
        return message

    def add(self, call: ToolCall) -> dict[str, Any]:
        item: dict[str, Any] = {
            "id": f"fc_{Setting.new_id()}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{Setting.new_id()}",
            "name": call.name,
            "arguments": call.arguments,
        }
        self.items.append(item)
        return item


class _Response:
    def __init__(self, head: dict[str, Any], items: Items) -> None:
        self._head = {**head, "created_at": int(time.time()), "status": "in_progress"}
        self._items, self._texts = items, list[str]()
        self._finish: str | None = None

    def moved(self, spans: Sequence[Span]) -> None:
        self._head["model_versions"] = spans

    def _whole(self, usage: Usage | None) -> dict[str, Any]:
        response = {**self._head, "output": self._items.items, "usage": None}
        if usage is not None:
            response["usage"] = {
                "input_tokens": usage.prompt,
                "input_tokens_details": {
                    "cached_tokens": usage.cached,
                    "cache_write_tokens": 0,
                },
                "output_tokens": usage.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt + usage.completion,
            }
        return response

    def _end(self) -> None:
        whole = self._finish != "length"
        self._head["status"] = "completed" if whole else "incomplete"
        if not whole:
            self._head["incomplete_details"] = {"reason": "max_output_tokens"}

    def _close(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message is written: its one part."""
        part = text_part("".join(self._texts))
        self._texts.clear()
        message["content"] = [part]
        message["status"] = "incomplete" if self._finish == "length" else "completed"
        return part


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponseWhole(_Response):
    type = JSON

    def begin(self, version: str) -> bytes:
        return b""

    def delta(self, delta: Delta) -> bytes:
        self._finish = delta.finish
        for said in self._items.read(delta):
            if isinstance(said, str):
                if self._items.message is None:
                    self._items.open()
                self._texts.append(said)
            else:
                self._close_open()
                self._items.add(said)
        return b""

    def end(self, usage: Usage) -> bytes:
        if not self._items.items:
            self._items.open()
        self._close_open()
        self._end()
        return orjson.dumps(self._whole(usage))

    def failed(self, fault: Fault) -> bytes:
        return orjson.dumps(error_body(fault))

    def _close_open(self) -> None:
        message = self._items.message
        if message is not None:
            self._close(message)


class ResponseStream(_Response):
    type = SSE

    def __init__(self, head: dict[str, Any], items: Items) -> None:
        super().__init__(head, items)
        self._number = 0

    def begin(self, version: str) -> bytes:
        response = self._whole(None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def delta(self, delta: Delta) -> bytes:
        self._finish = delta.finish
        out = []
        for said in self._items.read(delta):
            if isinstance(said, str):
                out += [self._opened(), self._text("response.output_text.delta", delta=said)]
                self._texts.append(said)
            else:
                out += [self._closed(), self._called(said)]
        return b"".join(out)

    def end(self, usage: Usage) -> bytes:
        opened = b"" if self._items.items else self._opened()
        closed = self._closed()
        self._end()
        done = "response.completed" if self._finish != "length" else "response.incomplete"
        return opened + closed + self._event(done, response=self._whole(usage))

    def failed(self, fault: Fault) -> bytes:
        return self._event("error", code=fault.code, message=fault.message, param=fault.param)

    def _event(self, type: str, **fields: Any) -> bytes:
        self._number += 1
        return named_event({"type": type, "sequence_number": self._number - 1, **fields})

    def _item(self, type: str, item: dict[str, Any]) -> bytes:
        return self._event(type, output_index=len(self._items.items) - 1, item=item)

    def _text(self, type: str, **fields: Any) -> bytes:
        message = self._items.message
        assert message is not None
        place = len(self._items.items) - 1
        if "part" not in fields:
            fields["logprobs"] = []
        return self._event(
            type, item_id=message["id"], output_index=place, content_index=0, **fields
        )

    def _opened(self) -> bytes:
        """The events by which a message begins, unless one is being written."""
        if self._items.message is not None:
            return b""
        added = self._item("response.output_item.added", self._items.open())
        return added + self._text("response.content_part.added", part=text_part(""))

    def _closed(self) -> bytes:
        message = self._items.message
        if message is None:
            return b""
        part = self._close(message)
        return (
            self._text("response.output_text.done", text=part["text"])
            + self._text("response.content_part.done", part=part)
            + self._item("response.output_item.done", message)
        )

    def _called(self, call: ToolCall) -> bytes:
        item = self._items.add(call)
        place = len(self._items.items) - 1
        begun = {**item, "status": "in_progress", "arguments": ""}
        where = {"item_id": item["id"], "output_index": place}
        arguments = call.arguments
        return (
            self._item("response.output_item.added", begun)
            + self._event("response.function_call_arguments.delta", delta=arguments, **where)
            + self._event(
                "response.function_call_arguments.done",
                arguments=arguments,
                name=call.name,
                **where,
            )
            + self._item("response.output_item.done", item)
        )
