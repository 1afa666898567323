"""The least HTTP server in Python that can take a POST and answer it.

The floor for `gateway.lane`: httptools parses, uvloop writes, one fixed JSON answer. It looks at no
header, checks nothing, limits nothing and times nothing. Run it, point wrk at it, and compare CPU
time for each request: on a machine that is shared, rates say little.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import httptools
import uvloop

BODY = b'{"outputs":[1,2,3,4,5,6,7,8,9,10]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(
    BODY
)


class Floor(asyncio.Protocol):
    """Reads the target and the body, and answers at the message's end."""

    __slots__ = ("_parser", "_transport", "body", "target")

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, target: bytes) -> None:
        self.target = target

    def on_body(self, chunk: bytes) -> None:
        self.body = chunk

    def on_message_complete(self) -> None:
        self._transport.write(ANSWER + BODY)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Floor, "127.0.0.1", port)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
