"""What replicas have died with: which request is to be tried alone, and which no more for a while.

Owns a bounded memory of requests, by a digest of what they ask for, so that one that is sent again
by its client is known. Reads no clock. Invariants: nobody is convicted of fewer than `DEADLY`
deaths, nor without having been alone at `ALONE` of them and at the last; every sentence ends.
"""

from __future__ import annotations

import enum

# A request with which so many replicas have died is tried no more. Two may be killed from outside
# at the same moment.
DEADLY = 3
# At so many of the deaths it was alone. Once it may have been somebody else's deed.
ALONE = 2
# On board so often, it is sent alone. Not the first time: for one request that kills replicas, very
# many are on one that is killed by somebody else, and shall be answered without delay.
SUSPECT = 2
# It is forgotten so long after the last death.
FORGET_S = 600.0
# How long a convicted one is refused before it is tried (alone) again; doubled with each death.
SENTENCE_S = 30.0


class Standing(enum.Enum):
    FREE = enum.auto()
    SUSPECT = enum.auto()
    CONVICTED = enum.auto()


class _Case:
    __slots__ = ("alone", "at", "deaths", "last_alone")

    def __init__(self) -> None:
        self.deaths = self.alone = 0
        self.last_alone, self.at = False, 0.0


class DeathRecord:
    """At most `capacity` requests; what has been quiet for longest is forgotten first."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._cases: dict[bytes, _Case] = {}  # the last death last

    def __len__(self) -> int:
        return len(self._cases)

    def died(self, key: bytes, now: float, *, alone: bool) -> None:
        """A replica did, and had this request; `alone`: nothing else."""
        self.expire(now)
        case = self._cases.pop(key, None) or _Case()
        self._cases[key] = case
        case.deaths, case.alone = case.deaths + 1, case.alone + alone
        case.last_alone, case.at = alone, now
        if len(self._cases) > self._capacity:
            del self._cases[next(iter(self._cases))]

    def survived(self, key: bytes) -> bool:
        """It was answered, by one that lives; whether anything was held against it."""
        return self._cases.pop(key, None) is not None

    def expire(self, now: float) -> None:
        """Forget what has been quiet for long."""
        for key, case in list(self._cases.items()):
            if now - case.at < FORGET_S:
                return
            del self._cases[key]

    def deaths(self, key: bytes) -> int:
        case = self._cases.get(key)
        return 0 if case is None else case.deaths

    def standing(self, key: bytes, now: float) -> Standing:
        if self.sentence(key, now) > 0.0:
            return Standing.CONVICTED
        return Standing.SUSPECT if self.deaths(key) >= SUSPECT else Standing.FREE

    def sentence(self, key: bytes, now: float) -> float:
        """For how many more seconds it is refused."""
        case = self._cases.get(key)
        if case is None or not case.last_alone or case.alone < ALONE or case.deaths < DEADLY:
            return 0.0
        longest = SENTENCE_S * 2.0 ** min(case.alone - ALONE, 10)
        return max(0.0, min(longest, FORGET_S) - (now - case.at))
