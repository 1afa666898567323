"""Seeds, derived from the run's one seed and what they are for.

Because every seed is a function of (seed, purpose, step, …), no generator's state need ever
be saved: a run that resumes at step n draws what the run that never stopped drew.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits; different purposes give independent ones."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seeds what a model draws from on `device`.

    Not `torch.manual_seed`: where CUDA is installed but unused, that records a stack trace at each
    call, which takes half as long as a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
