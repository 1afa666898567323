"""`python -m gateway compile`: what it says; the building is in `compiled`."""

from __future__ import annotations

import sys
import time


def compile_hot_path() -> int:
    from gateway.compiled import CannotCompile, build, modules

    began = time.monotonic()
    print(f"compiling {len(modules())} modules; this takes a minute or two ...", flush=True)
    try:
        place = build()
    except CannotCompile as error:
        print(f"gateway: compile: {error}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - began:.0f} s; the next workers use {place}")
    return 0
