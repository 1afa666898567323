"""`bench load`: a load on any HTTP or WebSocket server, watched while it runs."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from rich.console import Console

from bench.cli.load_options import BadOptions, spec_of
from bench.cli.load_screen import figures, show, watching
from bench.cli.ramp import climb
from bench.load import generator
from bench.load.spec import LoadSpec
from bench.record import rounded

# As a shell says that Ctrl-C ended a program.
INTERRUPTED = 128 + signal.SIGINT


def main(args: argparse.Namespace) -> int:
    # Whoever ends it gets what was found until then, whether by Ctrl-C or by a time limit.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        spec = spec_of(args)
        if args.ramp is not None:
            return climb(spec, args.ramp, args.processes, as_json=args.json)
        return _load(spec, args.processes, as_json=args.json)
    except (BadOptions, OSError, generator.LoadFailed) as error:
        print(f"bench load: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench load: interrupted before there was anything to report", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _load(spec: LoadSpec, processes: int, *, as_json: bool) -> int:
    """Raises LoadFailed, KeyboardInterrupt."""
    with watching(spec) as progress:
        report = generator.run(spec, processes=processes, progress=progress)
    if as_json:
        print(json.dumps(rounded(figures(spec, report))))
    else:
        show(spec, report, Console(highlight=False))
    if report.interrupted:
        return INTERRUPTED
    return 0 if report.ok else 1
