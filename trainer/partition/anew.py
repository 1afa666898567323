"""Training on from a checkpoint whenever work is divided anew.

Owns the repetition. Invariant: a loop that asks to be built anew has committed where it ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from trainer.loop import Ending, Loop
from trainer.resume import Start


def train(build: Callable[[Start], Loop], start: Start, newest: Callable[[], Start]) -> Ending:
    """`newest` finds the checkpoint to go on from. Collective."""
    began = time.monotonic()
    ending = build(start).run(start)
    while ending.anew:
        again = newest()
        ending = build(again).run(again)
    return replace(ending, seconds=time.monotonic() - began)
