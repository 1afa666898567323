"""`python -m bench`: measurements, each printing a table and one JSON line.

Example: python -m bench sim batching --quick
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Verb and subject to the module whose `main(argv) -> int` does it.
SIMULATIONS = {"batching": "bench.sim.batching", "routing": "bench.sim.routing"}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Penstock.",
        epilog="example: python -m bench sim batching --quick",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    sim = verbs.add_parser("sim", help="run the production policies in simulated time")
    sim.add_argument("subject", choices=sorted(SIMULATIONS))
    sim.add_argument("rest", nargs=argparse.REMAINDER, help="options of the simulation")
    args = parser.parse_args(argv)
    return int(importlib.import_module(SIMULATIONS[args.subject]).main(args.rest))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
