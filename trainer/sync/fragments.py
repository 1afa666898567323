"""Fragments: parts of the model that are exchanged by turns, each once in every round.

Owns who is in which fragment and at which steps a fragment leaves and lands (Douillard et al.,
"Streaming DiLoCo", 2025). Pure arithmetic: it sees names and sizes, no tensor. Invariant: in any
`every` consecutive steps each parameter leaves exactly once, and lands before it leaves again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fragment:
    """Parameters that leave together: at steps `phase`, `phase` + `every` and so on."""

    names: tuple[str, ...]
    phase: int
    every: int
    overlap: int

    def leaves(self, step: int) -> bool:
        """Whether an exchange begins after `step` (from 1)."""
        return step % self.every == self.phase

    def lands(self, step: int) -> bool:
        """Whether what left `overlap` steps ago is applied after `step`."""
        return step > self.overlap and (step - self.overlap) % self.every == self.phase

    def under_way(self, step: int) -> bool:
        """Whether it has left and not landed when `step` is done."""
        since = (step - self.phase) % self.every
        return since < self.overlap and step > since


def fragments(sizes: Mapping[str, int], count: int, every: int, overlap: int) -> list[Fragment]:
    """`count` fragments of about equal size, or as many as there are parameters: neighbours stay
    together, and their turns are spread evenly over `every` steps, the last one at its end."""
    count = min(count, len(sizes))
    total, before = sum(sizes.values()) or 1, 0
    members: list[list[str]] = [[] for _ in range(count)]
    for position, (name, size) in enumerate(sizes.items()):
        wanted = min(count - 1, (2 * before + size) * count // (2 * total))
        # None may stay empty: enough must be left for those behind, and one is due for each before.
        least = count - (len(sizes) - position)
        most = next((i for i, found in enumerate(members) if not found), count - 1)
        members[max(least, min(wanted, most))].append(name)
        before += size
    return [
        Fragment(tuple(names), (index + 1) * every // count % every, every, overlap)
        for index, names in enumerate(members)
    ]
