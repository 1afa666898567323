"""The command line: `python -m trainer CONFIG key=value…` and the verbs for a run's checkpoints.

Owns arguments, what errors look like and the exit status: 0 done, 2 wrong input, 1 anything else,
128 and the signal's number when a signal ended the training.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from trainer import commands, launch
from trainer.config import describe, load
from trainer.errors import TrainerError
from trainer.lifeline import end_with_launcher
from trainer.server import commands as server_commands

EXAMPLES = """\
train, alone or on two ranks; the same command goes on where it was interrupted:
  python -m trainer examples/digits/train.toml
  python -m trainer launch --ranks 2 examples/digits/train.toml steps=600
see what it would do:
  python -m trainer examples/digits/train.toml --dry-run --ranks 8
look after what was committed (each has --help):
"""


def _parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {commands.EXAMPLES[verb]}" for verb in commands.VERBS)
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        usage="python -m trainer CONFIG [KEY=VALUE ...] [--dry-run [--ranks N]]\n"
        f"       python -m trainer {'|'.join(server_commands.VERBS)} CONFIG [KEY=VALUE ...]\n"
        f"       python -m trainer {'|'.join(launch.VERBS)} ...\n"
        f"       python -m trainer {'|'.join(commands.VERBS)} RUN ...",
        description="Trains a model, commits verified checkpoints and publishes them to a channel.",
        epilog=f"{EXAMPLES}{verbs}\n\nkeys of CONFIG (a TOML file):\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file")
    parser.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="a key of CONFIG and its value here: steps=600 optimizer.lr=1e-3",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--ranks", type=int, help="with --dry-run: plan for so many ranks")
    return parser


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    if argv and argv[0] in commands.VERBS:
        return commands.main(argv)
    if argv and argv[0] in launch.VERBS:
        return launch.main(argv)
    if argv and argv[0] in server_commands.VERBS:
        return server_commands.main(argv)
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.ranks is not None and (not arguments.dry_run or arguments.ranks < 1):
        parser.error("--ranks takes a number from 1, and goes with --dry-run")
    end_with_launcher(os.environ)
    try:
        loaded = load(arguments.config, os.environ, arguments.overrides)
        # Here, not above: a wrong configuration is said before torch is loaded.
        from trainer.elastic import LeaderFailed, Place
        from trainer.process import dry_run, train

        if arguments.dry_run:
            dry_run(loaded, Place.of(os.environ), arguments.ranks)
            return 0
        try:
            return train(loaded, os.environ)
        except LeaderFailed as error:
            _let_rank_0_speak()
            return error.exit_status
    except TrainerError as error:
        _complain(str(error))
        return error.status


def _complain(message: str) -> None:
    """Once, although every rank may know: rank 0 speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    else:
        _let_rank_0_speak()


def _let_rank_0_speak() -> None:
    # torchrun stops all ranks when one ends; the one that says why must come first.
    time.sleep(1.0)


def run(argv: Sequence[str]) -> NoReturn:
    """`main`, then the end of the process without the interpreter's own.

    With gloo's and autograd's threads in it, that aborts one time in four ("terminate called
    without an active exception", torch 2.13), and torchrun takes a finished rank for a failed one.
    """
    try:
        status = main(argv)
    except KeyboardInterrupt:
        status = 130
    except SystemExit as wanted:
        status = wanted.code if isinstance(wanted.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1:])
