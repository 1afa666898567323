"""The command `python -m backends`: one replica as a process, and `import`, which feeds it.

Owns the process: its arguments, its signals, its event loop. Exit status 0 after SIGTERM or SIGINT,
1 when the device is lost, 2 when the file or the address cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from backends import config as configuration
from backends.config import ReplicaConfig
from backends.errors import CannotListen, ConfigError
from backends.events import EventLog
from backends.importing import command as importing
from backends.llm.replica import LlmReplica
from backends.tensor.replica import TensorReplica

EXAMPLE = """\
example:
  python -m backends serve examples/digits/digits.replica.toml --listen unix:/tmp/digits.sock

keys of FILE (also PENSTOCK_REPLICA_<KEY> in the environment, or --set key=value):
"""
# A thread that wants the interpreter waits at most this long for one that does not let go of it by
# itself: a reload's Python must not hold up a batch for the default of 5 ms.
SWITCH_S = 0.0005
# As glibc's malloc.h has it.
_M_ARENA_MAX = -8
# For threads that are done to end.
END_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # Before torch is loaded: threads of a product that wait by spinning take the cores from those
    # that serve.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if options.verb == "import":
        return importing.run_import(options)
    try:
        config = configuration.load(options.file, os.environ, options.set)
        return _run(config, options.listen)
    except (ConfigError, CannotListen) as error:
        print(f"backends: {error.message}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backends", description="A model replica.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    serve = verbs.add_parser(
        "serve",
        help="serve one model to gateways, over the wire protocol",
        description="Serve one model to gateways, over the wire protocol, until SIGTERM.",
        epilog=EXAMPLE + configuration.describe_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("file", type=Path, metavar="FILE", help="the replica's TOML file")
    serve.add_argument(
        "--listen",
        required=True,
        metavar="ADDRESS",
        help='"unix:/path" or "tcp:host:port"; the wire has no authentication, so use tcp only in '
        "a network that you trust",
    )
    serve.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of FILE"
    )
    importing.add_parser(verbs)
    return parser


def _run(config: ReplicaConfig, address: str) -> int:
    sys.setswitchinterval(SWITCH_S)
    _share_arenas()
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        replica = runner.run(_serve(config, address))
    replica.join(END_S)
    return 1 if replica.broken.is_set() else 0


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with suppress(ImportError):  # asyncio's own serves as well, only slower
        from uvloop import new_event_loop

        return new_event_loop
    return None


async def _first(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _share_arenas() -> None:
    """Each load has a thread of its own; with glibc's default, each may leave its version's memory
    in an arena of its own: a replica grew by half within 60 reloads, and does not with two."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library, which has no such arenas
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _keep_for_good() -> None:
    """What was imported stays: the collector need not walk over it in the middle of a batch."""
    gc.collect()
    gc.freeze()


async def _serve(config: ReplicaConfig, address: str) -> TensorReplica | LlmReplica:
    events = EventLog(sys.stderr.buffer, model=config.model, pid=os.getpid())
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    kinds: dict[str, type[TensorReplica] | type[LlmReplica]] = {
        "tensor": TensorReplica,
        "llm": LlmReplica,
    }
    replica = kinds[config.kind](config, events, imported=_keep_for_good)
    address = await replica.server.listen(address)
    events("listening", address=address)
    replica.start()
    await _first(stop, replica.broken)
    events("draining", seconds=config.drain_s)
    replica.drain("stopping")
    end = time.monotonic() + config.drain_s
    while not replica.settled and time.monotonic() < end:  # noqa: ASYNC110 - buffers tell nobody
        await asyncio.sleep(0.005)
    events("stopped", settled=replica.settled)
    await replica.close()
    return replica


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Threads may still import, load or compute; an interpreter torn down around them aborts.
    os._exit(status)
