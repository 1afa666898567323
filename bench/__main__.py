"""`python -m bench`: measurements, each printing a table and one JSON line.

Owns the verbs and their arguments; what a verb does is imported when it is asked for.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# Verb and subject to the module whose `main(argv) -> int` does it.
SIMULATIONS = {"batching": "bench.sim.batching", "routing": "bench.sim.routing"}
EXAMPLES = """\
examples:
  python -m bench list
  python -m bench run small-tensor --quick
  python -m bench load --url http://127.0.0.1:8080 --preset digits --rate 2000
  python -m bench compare before.json after.json
  python -m bench report relay.json stream.json
  python -m bench rivals install
  python -m bench sim batching --quick
"""
LOAD_EXAMPLES = """\
examples:
  python -m bench load --url http://127.0.0.1:8080 --preset digits --rate 2000
  python -m bench load --url http://127.0.0.1:8080 --mode openai --model smollm2 --connections 8
  python -m bench load --url ws://127.0.0.1:8080 --mode ws --preset digits
  python -m bench load --url http://127.0.0.1:8080 --preset digits --ramp 100:20000 --seconds 2
  python -m bench load --url http://127.0.0.1:8080 --trace requests.jsonl --speed 2
"""


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    if args.verb == "sim":
        try:
            return int(importlib.import_module(SIMULATIONS[args.subject]).main(args.rest))
        except KeyboardInterrupt:
            print(f"bench sim {args.subject}: interrupted, nothing reported", file=sys.stderr)
            return 128 + signal.SIGINT
    return int(importlib.import_module(f"bench.cli.{args.verb}").main(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Penstock, beside its rivals and beside the least that could do.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="the scenarios, the simulations and the rivals")
    _run(verbs.add_parser("run", help="run one scenario"))
    _load(verbs.add_parser("load", help="put load on any HTTP server"))
    _compare(verbs.add_parser("compare", help="two records of a scenario: which is better"))
    _report(verbs.add_parser("report", help="records as one HTML page and PNG pictures"))
    _rivals(verbs.add_parser("rivals", help="install the servers that we are measured beside"))
    sim = verbs.add_parser("sim", help="run the production policies in simulated time")
    sim.add_argument("subject", choices=sorted(SIMULATIONS))
    sim.add_argument("rest", nargs=argparse.REMAINDER, help="options of the simulation")
    return parser


def _run(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: python -m bench run small-tensor --quick --json figures.json"
    parser.add_argument("scenario", metavar="NAME", help="one of `python -m bench list`")
    parser.add_argument("--quick", action="store_true", help="within 50 seconds, less exact")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON line there too")
    parser.add_argument("--seed", type=int, default=1, help="of requests and arrivals (default 1)")
    parser.add_argument(
        "--rivals",
        metavar="A,B",
        help='only these; "" for none (default: all; in a quick run the fast ones)',
    )
    parser.add_argument(
        "--interpreted",
        action="store_true",
        help="do not compile the gateway's hot path first, which `gateway compile` does for users",
    )


def _load(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = LOAD_EXAMPLES
    parser.add_argument("--url", required=True, help="http://…, https://… or, of --mode ws, ws://…")
    parser.add_argument(
        "--mode",
        choices=("http", "sse", "openai", "ws"),
        default="http",
        help="what an answer is: one body; a stream of events, each timed; a completion as OpenAI "
        "has them, streamed unless --whole; a WebSocket message to each of ours (default http)",
    )
    parser.add_argument("--model", metavar="NAME", help="openai: the model")
    parser.add_argument("--prompt", metavar="TEXT", help="openai: what to ask")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="openai: at most (default 128)")
    parser.add_argument("--whole", action="store_true", help="openai: do not stream")
    parser.add_argument("--preset", choices=("mlp", "digits", "image"), help="a model's request")
    parser.add_argument("--body", type=Path, metavar="FILE", help="what to post; - reads it here")
    parser.add_argument("--method", help="left out: POST with a body, else GET")
    parser.add_argument(
        "-H", "--header", action="append", default=[], metavar="'NAME: VALUE'", help="repeatable"
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="open loop: so many a second, whatever the answers take; left out, a closed loop: "
        "each connection sends when it was answered",
    )
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "constant", "bursts"),
        help="of an open loop (default poisson); bursts: 0.4 and 1.6 times the rate in turns of a "
        "second on average",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="replay recorded requests at their own times: JSON lines with `at`, `body`, `path`, "
        "`method` and `headers` (docs/benchmarks.md)",
    )
    parser.add_argument("--speed", type=float, metavar="X", help="of a trace (default 1)")
    parser.add_argument(
        "--ramp",
        metavar="FROM:TO[:STEPS]",
        help="an open loop at one rate after another, --seconds each, until the knee is passed",
    )
    parser.add_argument("--connections", type=int, default=64, metavar="N", help="(default 64)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="(default 10; of a trace: all of it)"
    )
    parser.add_argument(
        "--warmup", type=float, default=0.0, metavar="S", help="before that, not counted"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="of a request (default 30)"
    )
    parser.add_argument(
        "--timing", action="store_true", help="ask a Penstock how large its batches were"
    )
    parser.add_argument("--insecure", action="store_true", help="do not check a certificate")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="P",
        help="to generate the load, for more than a core of it carries (default 1)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and presets (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of a table")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: python -m bench compare before.json after.json"
    parser.add_argument("a", type=Path, metavar="A.json", help="what `bench run --json` wrote")
    parser.add_argument("b", type=Path, metavar="B.json", help="the same, of what may be better")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: python -m bench report relay.json stream.json --out report"
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="what `bench run --json` wrote; left out, the records of docs/records",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/report"),
        metavar="FOLDER",
        help="where index.html and the pictures go (default runs/report)",
    )
    parser.add_argument(
        "--docs", action="store_true", help="make the tables of docs/benchmarks.md anew instead"
    )


def _rivals(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="install")
    install = verbs.add_parser(
        "install",
        help="make their virtual environments under .cache/rivals",
        epilog="example: python -m bench rivals install mosec triton",
    )
    install.add_argument("names", nargs="*", metavar="NAME", help="left out: all")
    install.add_argument("--again", action="store_true", help="also those that are installed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
