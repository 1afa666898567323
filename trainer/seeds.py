"""Seeds, derived from the run's one seed and what they are for.

Pure. Because every seed is a function of (seed, purpose, step, …), no generator's state need ever
be saved: a run that resumes at step n draws what the run that never stopped drew.
"""

from __future__ import annotations

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A seed of 63 bits; different purposes give independent ones."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
