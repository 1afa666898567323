"""The learning rate as a pure function of the step: warm-up, then one of four ways to fall."""

from __future__ import annotations

import math

from trainer.config import ScheduleConfig


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the full rate at `step` (from 1) of `steps`.

    The rate rises linearly over `warmup` steps. What remains falls from 1 to `final`: along half a
    cosine, a line, or (wsd: warm-up, stable, decay) a line over the last `decay` steps only.
    """
    if step <= config.warmup:
        return step / config.warmup
    done, rest = step - 1 - config.warmup, max(1, steps - config.warmup)
    if config.name == "constant":
        return 1.0
    if config.name == "wsd":
        decay = min(config.decay if config.decay is not None else max(1, steps // 5), rest)
        done, rest = max(0, done - (rest - decay)), decay
    progress = min(1.0, done / rest)
    left = (1 + math.cos(math.pi * progress)) / 2 if config.name == "cosine" else 1 - progress
    return config.final + (1 - config.final) * left
