"""An HTTP server for tests: `python http_upstream.py PORT`. It speaks a little of everything."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from aiohttp import WSMsgType, web


def chunk(text: str, **more: object) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "llm",
        "choices": [choice],
        **more,
    }


async def chat(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    text, user = asked["messages"][-1]["content"], asked.get("user")
    if not asked.get("stream"):
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return web.json_response({**whole, "choices": [choice]})
    reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await reply.prepare(request)
    for letter in text:
        await reply.write(f"data: {json.dumps(chunk(letter))}\n\n".encode())
        if user == "die":
            os._exit(1)
        if user == "slow":
            await asyncio.sleep(600)
    await reply.write(b"data: [DONE]\n\n")
    return reply


async def socket(request: web.Request) -> web.WebSocketResponse:
    reply = web.WebSocketResponse(protocols=["chat"])
    await reply.prepare(request)
    async for message in reply:
        if message.type == WSMsgType.BINARY:
            await reply.send_bytes(message.data)
        elif message.data == "close":
            await reply.close(code=4001, message=b"bye")
        else:
            await reply.send_str(message.data)
    return reply


async def pid(request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()))


app = web.Application()
app.router.add_post("/v1/chat/completions", chat)
app.router.add_get("/socket", socket)
app.router.add_get("/pid", pid)
app.router.add_get("/health", pid)

if __name__ == "__main__":
    port = int(sys.argv[1])
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None, shutdown_timeout=0.1)
