"""Which tensor of a checkpoint each tensor of a run is read from.

Owns the rule for checkpoints that another method wrote, or another number of replicas: what is
there by name is read; moments of a replica come from one that was saved; the rest starts anew.
Pure: it sees names only. Invariant: where nothing changed, every tensor is read under its own name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_REPLICA = re.compile(r"replica\.(\d+)\.(.+)")


def choose_sources(wanted: Iterable[str], stored: Collection[str], *, same: bool) -> dict[str, str]:
    """For each name that can be read, the stored name. `same`: the replicas are those of then."""
    count = 1 + max((int(m[1]) for name in stored if (m := _REPLICA.match(name))), default=-1)
    found = {}
    for name in wanted:
        candidates = list(_candidates(name, count, same))
        present = [candidate for candidate in candidates if candidate in stored]
        if present or name.startswith(("model.", "optimizer.")):
            # What a run cannot do without is asked for, so that reading says what is missing.
            found[name] = (present or candidates)[0]
    return found


def _candidates(name: str, count: int, same: bool) -> Iterable[str]:
    own = _REPLICA.match(name)
    if same:
        yield name
    elif own is None:
        if not name.startswith("sync.pending.") and name != "sync.shape":
            yield name
        if count and name.startswith("optimizer."):
            yield f"replica.0.{name}"
    elif own[2].startswith("optimizer."):
        if count:
            yield f"replica.{int(own[1]) % count}.{own[2]}"
        yield own[2]
