"""`python -m trainer worker|replay CONFIG …`: the verbs that belong to a parameter server.

Owns their arguments, what they print and their exit status: 0 done, 1 failed, 2 wrong input.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config import load
from trainer.errors import TrainerError
from trainer.lifeline import end_with_launcher

if TYPE_CHECKING:  # torch is loaded when the arguments are right
    from trainer.build import Session
    from trainer.elastic import World

VERBS = {
    "worker": "join the run whose server works with the same configuration",
    "replay": "compute a server's run again from its arrival log, and compare the weights",
}
EXAMPLES = {
    "worker": "python -m trainer worker examples/digits/train.toml sync.method=server",
    "replay": "python -m trainer replay examples/digits/train.toml sync.method=server",
}


def main(argv: Sequence[str]) -> int:
    """`argv` starts with one of the VERBS."""
    verb = argv[0]
    parser = argparse.ArgumentParser(
        prog=f"python -m trainer {verb}",
        description=VERBS[verb],
        epilog=f"example: {EXAMPLES[verb]}",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as the server's")
    if verb == "worker":
        parser.add_argument(
            "--address",
            metavar="HOST:PORT",
            help="where the server is; left out, the run's folder says it. The run's token is then "
            "in PENSTOCK_RUN_TOKEN, here as at the server",
        )
    else:
        parser.add_argument("--step", type=int, help="up to this checkpoint; default: the newest")
    arguments = parser.parse_intermixed_args(argv[1:])
    end_with_launcher(os.environ)
    try:
        loaded = load(arguments.config, os.environ, arguments.overrides)
        if loaded.config.sync.method != "server":
            raise loaded.error("sync.method", f'{verb} goes with "server"')
        from trainer.process import alone

        if verb == "worker":
            return alone(loaded, lambda session, world: _work(session, world, arguments.address))
        return alone(loaded, lambda session, world: _replay(session, world, arguments.step))
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.status


def _work(session: Session, world: World, address: str | None) -> int:
    from trainer.elastic import Stop
    from trainer.server.process import work

    stop = Stop()
    stop.listen()
    try:
        return work(session, world, stop, address)
    finally:
        stop.close()


def _replay(session: Session, world: World, step: int | None) -> int:
    from trainer.server.replay import replay

    found = replay(session, world.device, step)
    made = f"{found.arrivals} arrivals of {found.workers} workers, staleness up to"
    print(f"step {found.step}  {made} {found.staleness}")
    if found.wrong is None:
        print(f"the weights equal those of {found.version}, bit by bit")
        return 0
    print(f"NOT equal to {found.version}: {found.wrong} differs")
    return 1
