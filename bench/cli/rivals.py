"""`bench rivals install`: the virtual environments of the rivals."""

from __future__ import annotations

import argparse
import shutil
import sys

from bench.rivals import ALL, InstallFailed


def main(args: argparse.Namespace) -> int:
    unknown = [name for name in args.names if name not in ALL]
    if unknown:
        print(
            f"bench rivals install: no rival {unknown[0]!r}; there are {', '.join(ALL)}",
            file=sys.stderr,
        )
        return 2
    status = 0
    for name in args.names or ALL:
        rival = ALL[name]
        if rival.missing is None and not args.again:
            print(f"{name} {rival.version()}: installed")
            continue
        size = f"about {rival.megabytes} MB " if rival.megabytes else ""
        print(
            f"{name} {rival.version()}: installing {size}into {rival.environment} ...", flush=True
        )
        try:
            if args.again:
                shutil.rmtree(rival.environment, ignore_errors=True)
            rival.install()
        except KeyboardInterrupt:
            print(f"{name}: interrupted; the same command goes on from here", file=sys.stderr)
            return 130
        except InstallFailed as error:
            print(f"{name}: {error}", file=sys.stderr)
            status = 1
        else:
            print(f"{name} {rival.version()}: installed")
    return status
