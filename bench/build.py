"""Our hot path as machine code, before anything of ours is measured.

Rivals are set as their documentation recommends for throughput, and so is ours: `gateway compile`.
Without a C compiler the interpreter runs it, and the record says so.
"""

from __future__ import annotations

import os

from rich.console import Console

from gateway import compiled

# What they measure does not pass through the gateway.
WITHOUT = frozenset({"checkpoint", "llm-gpu", "sync", "train", "train-gpu", "train-recovery"})
# What it measures is the Python.
INTERPRETED = "hot-path"


def build(scenario: str, console: Console, *, interpreted: bool = False) -> str:
    """Build it where it is missing; how the gateway runs in this run."""
    if scenario in WITHOUT:
        return "not used"
    if interpreted or scenario == INTERPRETED:
        os.environ[compiled.OFF] = "0"  # the servers inherit it
    if os.environ.get(compiled.OFF) == "0":
        return "interpreted"
    try:
        with console.status("compiling the gateway's hot path, once: a minute or two ..."):
            compiled.build()
    except compiled.CannotCompile as error:
        console.print(f"the gateway runs interpreted: {error}", style="yellow", markup=False)
        return "interpreted"
    return "compiled"
