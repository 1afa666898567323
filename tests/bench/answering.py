"""A tiny HTTP server in a process of its own, that answers as its path says."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import cycle


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """`/status/N` answers N; `/close` answers and closes; `/drop` closes without an answer; `/slow`
    answers after a tenth of a second, `/never` does not; `/stall` stops the whole server for 0.4 s;
    `/timed` tells batches of 2 and 6. Others are answered 200."""
    batches = cycle((2, 6))
    try:
        while line := await reader.readline():
            path = line.split()[1].decode()
            length = 0
            while (field := await reader.readline()).strip():
                name, _, value = field.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            await reader.readexactly(length)
            if path == "/drop":
                break
            if path == "/never":
                await asyncio.sleep(60)
            if path == "/stall":
                time.sleep(0.4)  # noqa: ASYNC251
            if path == "/slow":
                await asyncio.sleep(0.1)
            status = int(path.split("/")[2]) if path.startswith("/status/") else 200
            more = b"connection: close\r\n" if path == "/close" else b""
            if path == "/timed":
                more = b'server-timing: queue;dur=0.1, batch;desc="%d"\r\n' % next(batches)
            writer.write(b"HTTP/1.1 %d X\r\n%scontent-length: 2\r\n\r\nok" % (status, more))
            if path == "/close":
                break
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
