"""A worker for tests of the supervisor: answers the control channel and one HTTP reply, no more.

Run as `fake_worker.py [--die N | --refuse] --listen-fd N --control-fd M`. Each reply's body is the
worker's process id; each status shows the operations that it was told.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from gateway.config import parse
from gateway.control import ControlChannel, ControlError


class FakeWorker:
    def __init__(self, listening, refuse):
        self.listening, self.refuse = listening, refuse
        self.stopped = asyncio.Event()
        self.told = []
        self.models = []

    async def run(self, control):
        names = ("drain", "undrain", "weight")
        handlers = {name: self.note(name) for name in names}
        handlers |= {
            "configure": self.configure,
            "accept": self.accept,
            "reconfigure": self.configure,
            "status": self.status,
            "metrics": self.metrics,
            "stop": self.stop,
        }
        self.channel = await ControlChannel.open(control, handlers)
        stopped = asyncio.ensure_future(self.stopped.wait())
        closed = asyncio.ensure_future(self.channel.closed.wait())
        await asyncio.wait({stopped, closed}, return_when=asyncio.FIRST_COMPLETED)

    def note(self, op):
        async def handler(arguments):
            self.told.append([op, arguments])
            return {}

        return handler

    async def accept(self, arguments):
        await asyncio.start_server(self.reply, sock=self.listening)
        return {}

    async def configure(self, arguments):
        if self.refuse:
            raise ControlError("no such luck")
        config = parse(
            arguments["text"], Path(arguments["path"]), os.environ, arguments["overrides"]
        )
        self.models = [
            {
                "name": model.name,
                "kind": "tensor",
                "ready": True,
                "waiting": 0,
                "slo_ms": model.slo_ms,
                "counters": {"accepted": 3, "done": 1, "failed": 1, "cancelled": 0, "live": 1},
                "replicas": [
                    {
                        "name": replica.name,
                        "kind": "native",
                        "address": replica.socket(Path(arguments["runtime"])),
                        "state": "ready",
                        "reason": "",
                        "version": "1-a",
                        "versions": ["1-a"],
                        "generation": 1,
                        "reload": "idle",
                        "pid": 0,
                        "weight": replica.weight,
                        "drained": False,
                        "breaker": "closed",
                        "work": 0.0,
                        "in_flight": 0,
                        "slots": 2,
                    }
                    for replica in model.replicas
                ],
            }
            for model in config.models
        ]
        return {"pid": os.getpid()}

    async def status(self, arguments):
        return {"pid": os.getpid(), "models": self.models, "told": self.told}

    async def metrics(self, arguments):
        family = ["penstock_requests_total", "counter", "Requests.", ["model"], [["m"], 2]]
        return {"families": [family]}

    async def stop(self, arguments):
        self.stopped.set()
        return {}

    async def reply(self, reader, writer):
        path = (await reader.readuntil(b"\r\n")).split()[1]
        body = str(os.getpid()).encode()
        if path == b"/whole":
            body = (await self.channel.call("metrics"))["text"].encode()
        if path == b"/told":
            body = repr(self.told).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--die")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    arguments = parser.parse_args()
    print("fake worker starts")
    if arguments.die is not None:
        sys.exit(arguments.die)
    listening = socket.socket(fileno=arguments.listen_fd)
    control = socket.socket(fileno=arguments.control_fd)
    worker = FakeWorker(listening, arguments.refuse)
    if arguments.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

        async def never(_):
            await asyncio.Event().wait()

        worker.stop = never
    asyncio.run(worker.run(control))


if __name__ == "__main__":
    main()
