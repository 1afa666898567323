"""A native replica for tests of the supervisor: says STATUS and answers CONTROL, executes nothing.

Run as `fake_replica.py FILE --listen unix:/path`. The first line of FILE says what it does:
`ready`, `loading` (for ever), or `die` with the rest of the line as its last words. What follows
`ready` are the versions that it has seen in channel `stable`, oldest first; it serves the last.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from backends.wire import Decoder, Fault, Kind, Status, encode


class FakeReplica(asyncio.Protocol):
    def __init__(self, state="ready", seen=None):
        self.state, self.seen = state, seen or []
        self.decoder = Decoder()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        for frame in self.decoder.feed(data):
            if frame.kind == Kind.HELLO:
                self.send(Kind.STATUS, 0, self.status())
            elif frame.kind == Kind.CONTROL and frame.json()["op"] == "reload":
                self.send(Kind.REPLY, frame.id, self.status(reload="load", reload_to="2-b"))
            elif frame.kind == Kind.CONTROL and self.done(**frame.json()):
                self.send(Kind.REPLY, frame.id, self.status())
            elif frame.kind == Kind.CONTROL:
                fault = Fault(status=409, code="no_version", message="nothing to go back to")
                self.send(Kind.ERROR, frame.id, fault.to_json())

    def done(self, op, version="", **said):
        """It knows nothing of a reload's states: it goes back at once."""
        if op == "rollback":
            if self.seen == [version] or not self.seen:
                return False
            if version in self.seen:
                self.seen.remove(version)
        return True

    def status(self, **more):
        plain = {"model": "m", "kind": "tensor", "state": self.state, "version": "1-a"}
        if self.seen:
            plain |= {"version": self.seen[-1], "channel": "stable"}
            plain |= {"goal": self.seen[-1], "goal_generation": len(self.seen)}
        return Status(**plain, pid=os.getpid(), **more).to_json()

    def send(self, kind, id, meta):
        self.transport.writelines(encode(kind, id, meta))


def main(file, flag, address):
    assert flag == "--listen"
    word, _, rest = Path(file).read_text().splitlines()[0].partition(" ")
    print(f"fake replica {os.getpid()} of {file}", flush=True)
    if word == "die":
        sys.exit(rest)
    asyncio.run(serve(word, rest.split(), address.removeprefix("unix:")))


async def serve(state, seen, path):
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: FakeReplica(state, seen), path)
    await server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
