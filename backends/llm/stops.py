"""Stop strings: found as text comes, with no more held back than may still become one.

Pure. Invariants: text that was given out contains no stop string and is never taken back; what is
found does not depend on where the text was cut: the stop string that is whole first wins.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """One choice. `feed` gives the text that is certain; after a hit, only text before the hit."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def feed(self, text: str, *, final: bool = False) -> tuple[str, bool]:
        """What may be said now, and whether a stop string was met."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = 0 if final else self._unsure(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def _unsure(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop string begins."""
        for size in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
