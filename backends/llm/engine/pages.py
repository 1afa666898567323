"""Which pages of the KV cache are free, held or kept for reuse: counts and names, no tensors.

Page 0 is reserved for padding and never given out. A page that nobody holds any more stays in the
cache while it has a name (the hash of what it contains), and is taken again when free ones run out,
the least recently used first. Invariant: free + cached + held = total, and only what nobody holds
is ever given out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class OutOfPages(Exception):
    """More were asked for than are free or cached."""


class Unsound(Exception):
    """The counts contradict each other: a defect of ours."""


class Counts(NamedTuple):
    free: int
    cached: int
    held: int


class _Name(NamedTuple):
    name: bytes
    # What it was computed by; all pages of one tag are dropped together.
    tag: str


class Pages:
    """`refs[page]` is how many hold it; read it as you like, write it never."""

    def __init__(self, total: int) -> None:
        assert total > 0
        self.total = total
        self.refs: NDArray[np.int32] = np.zeros(total + 1, np.int32)
        # Taken from the end: what was freed last is likeliest to be in a processor's cache.
        self._free = list(range(total, 0, -1))
        self._cached: dict[int, None] = {}  # least recently used first
        self._names: dict[int, _Name] = {}
        self._by_name: dict[bytes, int] = {}

    @property
    def counts(self) -> Counts:
        free, cached = len(self._free), len(self._cached)
        return Counts(free, cached, self.total - free - cached)

    @property
    def available(self) -> int:
        """How many `take` could give."""
        return len(self._free) + len(self._cached)

    def take(self, count: int) -> list[int]:
        """That many pages, held once each. All or none: raises OutOfPages."""
        if count > self.available:
            raise OutOfPages(f"{count} pages are needed, {self.available} are left")
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        self.refs[taken] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One more holds each of them; they are held or cached."""
        for page in pages:
            assert self.refs[page] or page in self._cached, page
            self._cached.pop(page, None)
            self.refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One less holds each. A cached one is evicted the later, the later it stands here: give
        the end of a sequence first."""
        for page in pages:
            assert self.refs[page] > 0, page
            self.refs[page] -= 1
            if self.refs[page]:
                continue
            if page in self._names:
                self._cached[page] = None
            else:
                self._free.append(page)

    def name(self, page: int, name: bytes, tag: str) -> None:
        """What it holds will not change any more. Where another page has that name, it stays
        nameless: one copy is enough."""
        assert self.refs[page] > 0, page
        if page not in self._names and name not in self._by_name:
            self._names[page] = _Name(name, tag)
            self._by_name[name] = page

    def find(self, name: bytes) -> int | None:
        return self._by_name.get(name)

    def forget(self, tag: str | None = None) -> None:
        """Take away the names of one tag, or all: nobody finds those pages any more."""
        self.unname([p for p, known in self._names.items() if tag is None or known.tag == tag])

    def unname(self, pages: Iterable[int]) -> None:
        """Nobody finds these any more: what they hold is not to be trusted."""
        for page in pages:
            known = self._names.pop(page, None)
            if known is not None:
                del self._by_name[known.name]
                if page in self._cached:
                    del self._cached[page]
                    self._free.append(page)

    def check(self, holders: Iterable[int] = ()) -> None:
        """Raises Unsound unless the counts agree with themselves and with `holders`: the pages of
        everybody who holds some, each as often as it is held."""
        held = np.bincount(np.fromiter(holders, np.int64), minlength=self.total + 1)
        if len(held) != len(self.refs) or (held != self.refs).any():
            wrong = np.flatnonzero(held[: len(self.refs)] != self.refs)
            raise Unsound(f"pages {wrong[:8].tolist()} are held otherwise than they are counted")
        free, cached = set(self._free), set(self._cached)
        if len(free) != len(self._free) or free & cached or 0 in free or 0 in cached:
            raise Unsound("a page is free twice, free and cached, or the one for padding")
        if len(free) + len(cached) + int((self.refs > 0).sum()) != self.total:
            raise Unsound(f"{len(free)} free, {len(cached)} cached, not {self.total} in all")
        if cached - self._names.keys() or free & self._names.keys():
            raise Unsound("a cached page has no name, or a free one has")

    def _evict(self) -> int:
        page = next(iter(self._cached))
        del self._cached[page]
        del self._by_name[self._names.pop(page).name]
        return page
