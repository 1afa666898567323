"""A token bucket that can be refunded, overdrawn and asked when it will do. Reads no clock."""

from __future__ import annotations


class TokenBucket:
    """Fills at `rate` per second up to `burst`, and begins full.

    `charge` may overdraw it: what a request turns out to have used is owed, whatever was reserved.
    A request for more than `burst` passes when the bucket is full, and is owed for too, so that
    none is refused for ever.
    """

    __slots__ = ("_level", "_stamp", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        if not 0.0 < rate < float("inf") or not 0.0 < burst < float("inf"):
            raise ValueError(f"rate and burst must be finite and above 0, not {rate} and {burst}")
        self.rate, self.burst = rate, burst
        self._level, self._stamp = burst, float("-inf")

    def level(self, now: float) -> float:
        """What is there; below 0 while something is owed."""
        if now > self._stamp:
            if self._stamp != float("-inf"):
                self._level = min(self.burst, self._level + (now - self._stamp) * self.rate)
            self._stamp = now
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken if nobody else takes any; 0: now."""
        missing = min(amount, self.burst) - self.level(now)
        # Rounding must not turn "come back in 2 s" into a lie by a hair.
        return missing / self.rate if missing > 1e-9 * self.burst else 0.0

    def charge(self, amount: float, now: float) -> None:
        """Take without asking; a negative amount gives back."""
        self._level = min(self.burst, self.level(now) - amount)
