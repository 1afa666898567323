"""Admission: whether a tenant may send one more request, by its own limits, and when if not now.

Owns per tenant a bucket of requests, one of tokens and a count of requests in flight. Tokens are
reserved at admission and settled at the end, when what was used is known. Every admission ends
once, however often it is settled. The table is bounded: without room, tenants share an account.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from gateway.policy.bucket import TokenBucket


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """None: no such limit. Rates are per minute, as providers state them; a bucket holds what
    comes in `burst_s`."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    concurrency: int | None = None
    burst_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}; leave it out for no limit")
        if not 0.0 < self.burst_s < float("inf"):
            raise ValueError(f"burst_s must be finite and above 0, not {self.burst_s}")


class Refused(NamedTuple):
    """`retry_after`: seconds after which it would have been admitted, had nobody else come; None
    where that depends on when others end. `reason` names the limit."""

    retry_after: float | None
    reason: str  # "requests", "tokens" or "concurrency"


class _Account:
    __slots__ = ("in_flight", "limits", "requests", "tokens")

    def __init__(self, limits: TenantLimits) -> None:
        self.limits, self.in_flight = limits, 0
        self.requests = _bucket(limits.requests_per_minute, limits.burst_s)
        self.tokens = _bucket(limits.tokens_per_minute, limits.burst_s)

    def adopt(self, limits: TenantLimits, now: float) -> None:
        """New limits hold at once; what has been used stays used."""
        requests, tokens = self.requests, self.tokens
        self.limits = limits
        self.requests = _bucket(limits.requests_per_minute, limits.burst_s)
        self.tokens = _bucket(limits.tokens_per_minute, limits.burst_s)
        for old, new in ((requests, self.requests), (tokens, self.tokens)):
            if old is not None and new is not None:
                new.charge(old.burst - old.level(now), now)

    def idle(self, now: float) -> bool:
        """Whether a new account would be the same."""
        buckets = (self.requests, self.tokens)
        return not self.in_flight and all(b is None or b.level(now) >= b.burst for b in buckets)


class Admitted:
    """A request in flight. End it with `settle`, once; later calls do nothing."""

    __slots__ = ("_account", "reserved")

    def __init__(self, account: _Account, reserved: float) -> None:
        self._account: _Account | None = account
        self.reserved = reserved

    def settle(self, now: float, tokens: float | None = None) -> bool:
        """It has ended and used `tokens`; None: as many as were reserved. A request that never
        ran settles with 0. False when it had been settled before."""
        account, self._account = self._account, None
        if account is None:
            return False
        account.in_flight -= 1
        if tokens is not None and account.tokens is not None:
            account.tokens.charge(tokens - self.reserved, now)
        return True


class Admission:
    """`limits` gives a tenant's limits, None where it has none. At most `capacity` accounts, which
    may be changed."""

    def __init__(
        self, limits: Callable[[str], TenantLimits | None], *, capacity: int = 4096
    ) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1")
        self._limits, self.capacity = limits, capacity
        self._accounts: dict[str, _Account] = {}
        self._shared: _Account | None = None
        self._free = _Account(TenantLimits())

    def __len__(self) -> int:
        return len(self._accounts)

    def charge(self, tenant: str, now: float, requests: float, tokens: float) -> None:
        """What was taken of the same limits elsewhere."""
        limits = self._limits(tenant)
        if limits is None:
            return
        account = self._accounts.get(tenant) or self._open(tenant, limits, now)
        if account.requests is not None:
            account.requests.charge(requests, now)
        if account.tokens is not None:
            account.tokens.charge(tokens, now)

    def admit(
        self, tenant: str, now: float, *, tokens: float = 0.0, elsewhere: int = 0
    ) -> Admitted | Refused:
        """Take one request and `tokens` from the tenant's limits, or nothing at all. `elsewhere`:
        its requests in flight at others that share the limits."""
        if not tokens >= 0.0:
            raise ValueError(f"tokens must not be negative, not {tokens}")
        limits = self._limits(tenant)
        if limits is None:
            self._free.in_flight += 1
            return Admitted(self._free, tokens)
        account = self._accounts.get(tenant) or self._open(tenant, limits, now)
        if account.limits is not limits and account is not self._shared:
            account.adopt(limits, now)
        if limits.concurrency is not None and account.in_flight + elsewhere >= limits.concurrency:
            return Refused(None, "concurrency")
        waits = []
        if account.requests is not None:
            waits.append((account.requests.wait(1.0, now), "requests"))
        if account.tokens is not None:
            waits.append((account.tokens.wait(tokens, now), "tokens"))
        longest = max(waits, default=(0.0, ""))
        if longest[0] > 0.0:
            return Refused(*longest)
        if account.requests is not None:
            account.requests.charge(1.0, now)
        if account.tokens is not None:
            account.tokens.charge(tokens, now)
        account.in_flight += 1
        return Admitted(account, tokens)

    def in_flight(self, tenant: str) -> int:
        account = self._accounts.get(tenant)
        return account.in_flight if account is not None else 0

    def _open(self, tenant: str, limits: TenantLimits, now: float) -> _Account:
        if len(self._accounts) >= self.capacity and not self._evict(now):
            # All are in use: newcomers share one account, strict but never an error.
            self._shared = self._shared or _Account(limits)
            return self._shared
        account = self._accounts[tenant] = _Account(limits)
        return account

    def _evict(self, now: float) -> bool:
        """Forget an account that holds nothing, among the oldest."""
        for tenant in list(islice(self._accounts, _LOOK)):
            if self._accounts[tenant].idle(now):
                del self._accounts[tenant]
                return True
            self._accounts[tenant] = self._accounts.pop(tenant)  # the next look sees others
        return False


_LOOK = 16  # accounts looked at for one to forget: the cost of a full table stays bounded


def _bucket(per_minute: float | None, burst_s: float) -> TokenBucket | None:
    if per_minute is None:
        return None
    rate = per_minute / 60.0
    return TokenBucket(rate, max(1.0, rate * burst_s))
