"""What a gateway has counted of each model, over workers that come and go.

Owns the last that was seen of each worker's life. Invariants: no counter but `live` ever falls, and
accepted = done + failed + cancelled + live, also when a worker dies: what it had not answered has
failed, for its clients' connections broke.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
NAMES = ("accepted", "done", "failed", "cancelled", "live")


class Counts:
    """`key` names one life of one worker."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, Counter[str]]] = {}
        self._gone: dict[str, Counter[str]] = {}

    def seen(self, key: str, models: Sequence[Json]) -> None:
        """A worker's report."""
        self._last[key] = {model["name"]: Counter(model.get("counters", {})) for model in models}

    def gone(self, key: str) -> None:
        for name, counters in self._last.pop(key, {}).items():
            counters["failed"] += counters.pop("live", 0)
            self._gone[name] = self._gone.get(name, Counter()) + counters

    def of(self, model: str) -> dict[str, int]:
        """Over all lives; a worker that does not answer just now counts with what it said last."""
        total = Counter(self._gone.get(model, {}))
        for models in self._last.values():
            total.update(models.get(model, {}))
        return {name: total[name] for name in NAMES}
