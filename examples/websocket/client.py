"""A client for the gateway's WebSocket, and a few things to do with it.

    python -m gateway serve examples/digits/serve.toml      # after `make demo` has trained a model
    python examples/websocket/client.py

`Socket` is all that a program needs; docs/websocket.md has the protocol. Needs `websockets`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import websockets


class Failed(Exception):
    """The error message that ended a request; `fields` has its status, code and the rest."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(f"{fields['status']} {fields['code']}: {fields['message']}")
        self.fields = fields


class Socket:
    """Many requests at once on one connection. Made by `connect`."""

    def __init__(self, ws: websockets.ClientConnection) -> None:
        self._ws = ws
        self._ids = map(str, itertools.count())
        self._waiting: dict[str, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}

    async def infer(
        self, model: str, inputs: list[dict[str, Any]], tensors: bytes = b"", **more: Any
    ) -> tuple[dict[str, Any], bytes]:
        """The result message, and the bytes of its binary outputs. Cancelling this call cancels the
        request. Raises Failed, or ConnectionClosed where the socket ended first."""
        name = next(self._ids)
        document = {"type": "infer", "id": name, "model_name": model, "inputs": inputs, **more}
        text = json.dumps(document).encode()
        message = struct.pack("<I", len(text)) + text + tensors if tensors else text.decode()
        done = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            await self._ws.send(message)
            return await done
        except asyncio.CancelledError:
            await self._ws.send(json.dumps({"type": "cancel", "id": name}))
            raise
        finally:
            del self._waiting[name]

    async def _read(self) -> None:
        """Give each terminal message to the call that waits for it."""
        try:
            async for message in self._ws:
                tensors = b""
                if isinstance(message, bytes):
                    end = 4 + struct.unpack_from("<I", message)[0]
                    message, tensors = message[4:end], message[end:]
                fields = json.loads(message)
                done = self._waiting.get(fields.get("id", ""))
                if done is None or done.done():
                    continue  # of a request that was cancelled
                if fields["type"] == "result":
                    done.set_result((fields, tensors))
                elif fields["type"] == "error":
                    done.set_exception(Failed(fields))
        finally:
            # The socket has closed: whatever has no terminal message now will get none.
            for done in self._waiting.values():
                if not done.done():
                    done.set_exception(self._ws.protocol.close_exc)


@asynccontextmanager
async def connect(url: str, **headers: str) -> AsyncIterator[Socket]:
    """`headers`: x_session_id, x_priority … for all requests of the socket."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with websockets.connect(
        url, additional_headers=fields, max_size=None, compression=None
    ) as ws:
        socket = Socket(ws)
        reader = asyncio.create_task(socket._read())
        try:
            yield socket
        finally:
            await ws.close()
            await reader


def image(pixels: list[float]) -> dict[str, Any]:
    return {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": pixels}


async def show(url: str, model: str, count: int) -> None:
    async with connect(url) as socket:
        fields, _ = await socket.infer(model, [image([0.0] * 64)])
        print("one request:", {k: v for k, v in fields.items() if k != "outputs"})
        for output in fields["outputs"]:
            print("  ", output)

        # The same as raw tensors, both ways.
        entry = {"name": "image", "shape": [1, 64], "datatype": "FP32"}
        entry["parameters"] = {"binary_data_size": 256}
        raw = {"binary_data_output": True}
        _, tensors = await socket.infer(model, [entry], bytes(256), parameters=raw)
        print("binary:", len(tensors), "bytes of outputs")

        try:
            await socket.infer(model, [image([1.0])], deadline_ms=100)
        except Failed as error:
            print("a bad request fails alone:", error)

        rng = random.Random(1)
        images = [image([16 * rng.random() for _ in range(64)]) for _ in range(count)]
        start = time.perf_counter()
        calls = [socket.infer(model, [x], session=f"s{n % 8}") for n, x in enumerate(images)]
        await asyncio.gather(*calls)
        seconds = time.perf_counter() - start
        print(f"{count} requests at once on one socket: {count / seconds:,.0f} a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="ws://127.0.0.1:8080/ws")
    parser.add_argument("--model", default="digits")
    parser.add_argument("--count", type=int, default=200, help="below 256: a socket takes no more")
    options = parser.parse_args()
    try:
        asyncio.run(show(options.url, options.model, options.count))
    except (OSError, Failed, websockets.WebSocketException) as error:
        parser.exit(1, f"{options.url}: {error}\n")


if __name__ == "__main__":
    main()
