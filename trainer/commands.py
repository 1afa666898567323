"""`python -m trainer ls|verify|publish|rollback|prune|push|pull`: looking after checkpoints.

Owns what these print and their exit status: 0 done, 1 refused or broken, 2 wrong usage. What they
do is the checkpoint package's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import TrainerError
from trainer.gate import Gate
from trainer.sizes import size

if TYPE_CHECKING:  # checkpoints load torch, which `--help` and a wrong argument need not wait for
    from backends.checkpoint import Run

VERBS = {
    "ls": "the committed checkpoints, and what points at them",
    "verify": "read every byte of every checkpoint (or of those named) and compare",
    "publish": "point a channel at a checkpoint that the gate lets pass",
    "rollback": "point a channel at the version before, under a new generation",
    "prune": "delete checkpoints that nothing needs, but for the newest ones",
    "push": "put what a channel points at into an object store, for replicas on other machines",
    "pull": "bring a checkpoint from an object store, with the state to resume from",
}
EXAMPLES = {
    "ls": "python -m trainer ls runs/digits",
    "verify": "python -m trainer verify runs/digits 200 300",
    "publish": 'python -m trainer publish runs/digits --step 300 --require "accuracy >= 0.97"',
    "rollback": "python -m trainer rollback runs/digits --channel stable",
    "prune": "python -m trainer prune runs/digits --keep 3 --keep-every 1000 --dry-run",
    "push": "python -m trainer push runs/digits s3://bucket/runs/digits --keep 5",
    "pull": "python -m trainer pull runs/digits s3://bucket/runs/digits",
}


def main(argv: Sequence[str]) -> int:
    """`argv` starts with one of the VERBS."""
    arguments = _parser(argv[0]).parse_args(argv[1:])
    from backends.checkpoint import CheckpointError, Run

    folder = Path(arguments.run)
    if not folder.is_dir() and argv[0] != "pull":
        wrong = "there is no such folder; expected a run's, such as runs/digits"
        print(f"{folder}: {wrong}", file=sys.stderr)
        return 2
    act: dict[str, Callable[..., int]] = {
        "ls": _ls,
        "verify": _verify,
        "publish": _publish,
        "rollback": _rollback,
        "prune": _prune,
        "push": _push,
        "pull": _pull,
    }
    try:
        return act[argv[0]](Run(folder), arguments)
    except (CheckpointError, TrainerError) as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m trainer {verb}",
        description=VERBS[verb],
        epilog=f"example: {EXAMPLES[verb]}",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, such as runs/digits")
    if verb == "verify":
        parser.add_argument("steps", metavar="STEP", type=int, nargs="*", help="default: all")
    if verb in ("push", "pull"):
        parser.add_argument("store", metavar="STORE", help='such as "s3://bucket/runs/digits"')
        parser.add_argument(
            "--option", metavar="KEY=VALUE", action="append", default=[], type=_option,
            help="of the store, as fsspec has them, such as endpoint_url=http://127.0.0.1:9000",
        )  # fmt: skip
    if verb in ("publish", "rollback", "push", "pull"):
        parser.add_argument("--channel", default="stable", help="default: stable")
    if verb == "publish":
        parser.add_argument("--step", type=int, help="default: the newest that is whole")
        parser.add_argument(
            "--require", type=Gate.parse, default=Gate(), help='such as "accuracy >= 0.97"'
        )
    if verb == "push":
        parser.add_argument("--keep", type=_positive, help="older ones in the store are deleted")
    if verb == "pull":
        parser.add_argument("--step", type=int, help="default: where the channel points")
    if verb == "prune":
        parser.add_argument("--keep", type=_positive, required=True, help="newest that stay")
        parser.add_argument("--keep-every", type=_positive, help="multiples of it stay too")
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(text)
    return name, value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _ls(run: Run, arguments: argparse.Namespace) -> int:
    from backends.checkpoint import (
        CheckpointError,
        channel_names,
        is_quarantined,
        read_channel,
        verify,
    )
    from trainer.metrics import show

    channels = {name: read_channel(run, name) for name in channel_names(run)}
    rows = []
    for step in run.steps():
        try:
            manifest = verify(run, step, every_byte=False)
        except CheckpointError as error:
            rows.append((str(step), "BROKEN", "", "", str(error)))
            continue
        marks = [
            f"{name} (generation {record.generation})"
            for name, record in channels.items()
            if record is not None and record.hash == manifest.hash
        ]
        if is_quarantined(run, manifest.hash):
            marks.append("in quarantine")
        total = size(manifest.total)
        evaluation, seen = show(manifest.evaluation), f"{manifest.position:,}"
        rows.append((manifest.version, seen, total, evaluation, ", ".join(marks)))
    if not rows:
        print(f"{run.root}: nothing is committed yet")
        return 0
    heads = ("VERSION", "SAMPLES", "SIZE", "HELD OUT", "CHANNEL")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _verify(run: Run, arguments: argparse.Namespace) -> int:
    from backends.checkpoint import CheckpointError, verify

    steps, broken = arguments.steps or run.steps(), 0
    for step in steps:
        try:
            manifest = verify(run, step)
        except CheckpointError as error:
            broken += 1
            print(f"step {step}  BROKEN  {error}")
            continue
        files, total = len(manifest.files), size(manifest.total)
        print(f"step {step}  whole  {manifest.version}  {files} files, {total}")
    if not steps:
        print(f"{run.root}: nothing is committed yet")
    return 1 if broken else 0


def _publish(run: Run, arguments: argparse.Namespace) -> int:
    from trainer.publish import publish_step

    step = arguments.step
    if step is None:
        latest = run.latest()
        if latest is None:
            print(f"{run.root}: no whole checkpoint to publish", file=sys.stderr)
            return 1
        step = latest.step
    record, changed = publish_step(run, step, arguments.channel, arguments.require)
    verb = "is now" if changed else "was already"
    print(f"{record.name} {verb} {record.version} (generation {record.generation})")
    return 0


def _rollback(run: Run, arguments: argparse.Namespace) -> int:
    from backends.checkpoint import rollback

    record = rollback(run, arguments.channel)
    print(f"{record.name} is back at {record.version} (generation {record.generation})")
    return 0


def _prune(run: Run, arguments: argparse.Namespace) -> int:
    from backends.checkpoint import prunable, prune

    if arguments.dry_run:
        steps, verb = prunable(run, arguments.keep, arguments.keep_every), "would delete"
    else:
        steps, verb = prune(run, arguments.keep, arguments.keep_every), "deleted"
    print(f"{verb} {', '.join(f'step {step}' for step in steps) or 'nothing'}")
    return 0


def _push(run: Run, arguments: argparse.Namespace) -> int:
    from backends.checkpoint.mirror import prune_store, push
    from backends.checkpoint.objects import Store

    store = Store(arguments.store, **dict(arguments.option))
    with _bar("pushing") as progress:
        record = push(run, arguments.channel, store, progress=progress)
    if record is None:
        print(f"{run.root}: nothing was published to channel {arguments.channel}", file=sys.stderr)
        return 1
    print(f"{store.url}: {record.name} is at {record.version} (generation {record.generation})")
    if arguments.keep is not None:
        steps = prune_store(store, keep=arguments.keep)
        print(f"deleted {', '.join(f'step {step}' for step in steps) or 'nothing'}")
    return 0


def _pull(run: Run, arguments: argparse.Namespace) -> int:
    from backends.checkpoint.mirror import newest_channel, pull
    from backends.checkpoint.objects import Store

    store = Store(arguments.store, **dict(arguments.option))
    step, hash = arguments.step, None
    if step is None:
        record = newest_channel(store, arguments.channel)
        if record is None:
            print(f"{store.url}: channel {arguments.channel} has nothing yet", file=sys.stderr)
            return 1
        step, hash = record.step, record.hash
    with _bar("pulling") as progress:
        manifest = pull(store, run, step, hash, served_only=False, progress=progress)
    print(f"{run.root}: {manifest.version} is here; a run in this folder resumes from it")
    return 0


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """On a terminal, a bar; `progress(bytes done, of all)`."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress
