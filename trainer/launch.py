"""`python -m trainer launch|store`: ranks on one machine or on several, which come and go.

Owns how torchrun is started, so that a machine may join a run under way and any may be lost. Two
things of torchrun's (2.11 to 2.13) stand against it. The first agent hosts the rendezvous, which
dies with it: here a process of its own does. And agents share one store between rounds, but name it
in the first only, so that who joins later waits for MASTER_ADDR in vain: here they do not share.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.config import load
from trainer.errors import TrainerError

VERBS = {
    "launch": "train on this machine's share of the ranks, again whenever machines come or go",
    "store": "where the machines of a run find each other; it outlives all of them",
}
EXAMPLES = {
    "launch": "python -m trainer launch --ranks 2 examples/digits/train.toml",
    "store": "python -m trainer store 29400",
}
EPILOG = """\
one machine, two ranks, started again when one of them dies:
  python -m trainer launch --ranks 2 examples/digits/train.toml
one to four machines of eight ranks; this on each, whenever you like, after the store's on one:
  python -m trainer store 29400
  python -m trainer launch --machines 1:4 --ranks 8 --store HOST:29400 CONFIG balance.mesh=true
"""
# A machine that does not answer for so long is lost: six times one second.
RENDEZVOUS = "is_host=false,keep_alive_interval=1,keep_alive_max_attempt=6"
# Between the first machines that are enough and the start: whoever comes later costs a restart.
GATHER_S = 3
ENDS = {signal.SIGINT, signal.SIGTERM}


def main(argv: Sequence[str]) -> int:
    """`argv` starts with one of the VERBS."""
    return _store(argv[1:]) if argv[0] == "store" else _launch(argv[1:])


def _launch(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    try:  # said once, instead of by every rank at every restart
        load(Path(arguments.config[0]), os.environ, arguments.config[1:])
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    sys.stdout.flush()
    os.execve(sys.executable, torchrun(arguments), environment(os.environ, arguments.ranks))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    found = parser.parse_args(argv)
    if not found.config:
        parser.error("expected a CONFIG, such as examples/digits/train.toml")
    late = next((word for word in found.config if word.startswith("-")), None)
    if late is not None:
        parser.error(f"{late} stands behind CONFIG, where only KEY=VALUE may be; put it before")
    if found.machines != "1" and found.store is None:
        parser.error("--machines needs --store HOST:PORT, where `python -m trainer store` is")
    return found


def torchrun(arguments: argparse.Namespace) -> list[str]:
    """The command of this machine's agent."""
    found = [sys.executable, "-m", "trainer.agent", "--nnodes", arguments.machines]
    found += ["--nproc-per-node", arguments.ranks, "--max-restarts", str(arguments.restarts)]
    if arguments.store is None:
        found += ["--standalone"]
    else:
        found += ["--rdzv-backend", "c10d", "--rdzv-endpoint", arguments.store]
        found += ["--rdzv-id", arguments.name]
        found += ["--rdzv-conf", f"{RENDEZVOUS},last_call_timeout={GATHER_S}"]
    return [*found, "-m", "trainer", *arguments.config]


def environment(environ: Mapping[str, str], ranks: str) -> dict[str, str]:
    """torchrun would give each rank one thread, whatever cores there are, and warn of it."""
    shares = int(ranks) if ranks.isdigit() else 1
    threads = max(1, len(os.sched_getaffinity(0)) // shares)
    own = {"OMP_NUM_THREADS": str(threads)} if ranks.isdigit() else {}
    return {**own, **environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer launch",
        usage="python -m trainer launch [--ranks N] [--machines MIN:MAX --store HOST:PORT] "
        "CONFIG [KEY=VALUE ...]",
        description=VERBS["launch"].capitalize() + ", by torchrun.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ranks", type=_ranks, default="1", help='on this machine, or "gpu": one a GPU; default: 1'
    )
    parser.add_argument(
        "--machines", type=_machines, default="1", help="how many train at once: 2, or 1:4"
    )
    parser.add_argument("--store", type=_address, metavar="HOST:PORT", help="needed for several")
    parser.add_argument("--name", default="penstock", help="of the run, where runs share a store")
    parser.add_argument(
        "--restarts", type=int, default=3, help="after a rank's death; default: 3. Others are free"
    )
    parser.add_argument(
        "config", metavar="CONFIG [KEY=VALUE ...]", nargs=argparse.REMAINDER, help="what to train"
    )
    return parser


def _ranks(text: str) -> str:
    if text != "gpu" and not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f'expected a number from 1, or "gpu", got {text!r}')
    return text


def _machines(text: str) -> str:
    found = re.fullmatch(r"([1-9]\d*)(?::([1-9]\d*))?", text)
    if found is None or int(found[2] or found[1]) < int(found[1]):
        raise argparse.ArgumentTypeError(f"expected a number, or MIN:MAX, got {text!r}")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r"[^\s:]+:\d{1,5}", text):
        raise argparse.ArgumentTypeError(f"expected HOST:PORT, got {text!r}")
    return text


def _store(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer store",
        description=VERBS["store"].capitalize() + ". Anybody who reaches the port can write to it: "
        "only for a network that you trust.",
        epilog=f"example: {EXAMPLES['store']}",
    )
    parser.add_argument("port", metavar="PORT", type=int, help="it listens at; 0: any")
    port = parser.parse_args(argv).port
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        print(f"error: port {port}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print(f"machines find each other at port {store.port}; Ctrl-C ends it", flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    signal.sigwait(ENDS)
    return 0
