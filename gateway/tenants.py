"""Who a request belongs to, what that tenant may use, and what it has used.

Owns the tenants of one worker, made from the configured keys, and what is counted of each. It knows
no key: `auth` finds the tenant of a request. Invariants: each visit ends once; for each tenant,
admitted = ended + live; a tenant's accounts outlive a change of the configuration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.config_access import KeyConfig
from gateway.errors import Forbidden, LimitReached
from gateway.measures import Family
from gateway.policy.admission import Admission, Admitted, Refused, TenantLimits

if TYPE_CHECKING:
    from gateway.lane import Exchange

_LIMITS = {
    "requests": "requests per second",
    "tokens": "tokens per minute",
    "concurrency": "requests at a time",
}


class Visit:
    """One admitted request. `tokens`: what it has used, as far as is known; None: what was
    reserved. The surface that learns it sets it; `end` settles it, once."""

    __slots__ = ("_admitted", "_tenant", "tokens")

    def __init__(self, tenant: Tenant, admitted: Admitted) -> None:
        self._tenant, self._admitted = tenant, admitted
        self.tokens: float | None = None

    def end(self) -> None:
        tenant, tokens = self._tenant, self.tokens
        if self._admitted.settle(tenant.clock(), tokens):
            tenant.live -= 1
            tenant.tokens += self._admitted.reserved if tokens is None else tokens


class Tenant:
    """One configured key. `clock` is the loop's."""

    __slots__ = (
        "_admission",
        "admitted",
        "clock",
        "config",
        "limited",
        "live",
        "name",
        "refused",
        "tokens",
    )

    def __init__(self, config: KeyConfig, admission: Admission, clock: Callable[[], float]) -> None:
        self.name, self.config, self.clock = config.name, config, clock
        self.limited = False  # whether its tokens count, so that requests must be looked into
        self._admission = admission
        self.admitted = self.live = 0
        self.tokens = 0.0
        self.refused: Counter[str] = Counter()

    @property
    def weight(self) -> float:
        return self.config.weight

    def priority(self, asked: int) -> int:
        """What it gets of the priority that a request asks for."""
        return min(asked, self.config.priority)

    def may(self, model: str) -> bool:
        models = self.config.models
        return models is None or model in models

    def allow(self, model: str) -> None:
        """Raises Forbidden."""
        if not self.may(model):
            self.refused["model"] += 1
            raise Forbidden(f"the key {self.name!r} may not use model {model!r}", param="model")

    def manage(self) -> None:
        """Raises Forbidden where it may not change what is served."""
        if not self.config.manage:
            self.refused["manage"] += 1
            raise Forbidden(
                f"the key {self.name!r} may not load or unload models; that takes a key with "
                "manage = true, or the operators' listener"
            )

    def take(self, model: str, tokens: float = 0.0) -> Visit:
        """Admit one request to the model, which reserves so many tokens. Raises Forbidden and
        LimitReached; who gets a visit ends it."""
        self.allow(model)
        admitted = self._admission.admit(self.name, self.clock(), tokens=tokens)
        if isinstance(admitted, Refused):
            self.refused[admitted.reason] += 1
            raise LimitReached(
                f"the key {self.name!r} has reached its limit of {_LIMITS[admitted.reason]}",
                retry_after=admitted.retry_after,
            )
        self.admitted += 1
        self.live += 1
        return Visit(self, admitted)

    def enter(self, exchange: Exchange, model: str, tokens: float = 0.0) -> Visit:
        """As `take`, for a request that ends with its exchange."""
        visit = self.take(model, tokens)
        exchange.on_end = visit.end
        return visit


class Tenants:
    """All of a worker's. `workers`: how many share the limits of each tenant."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tenants: dict[str, Tenant] = {}
        self._limits: dict[str, TenantLimits] = {}
        self._admission = Admission(self._limits.get)

    def apply(self, keys: Sequence[KeyConfig], workers: int) -> None:
        """Tenants of removed keys stay as long as requests hold them; nobody finds them."""
        self._limits.clear()
        self._tenants = {key.name: self._tenant(key) for key in keys}
        for key in keys:
            limits = limits_of(key, workers)
            if limits is not None:
                self._limits[key.name] = limits

    def _tenant(self, key: KeyConfig) -> Tenant:
        tenant = self._tenants.get(key.name) or Tenant(key, self._admission, self._clock)
        tenant.config, tenant.limited = key, key.tokens_per_minute is not None
        return tenant

    def __getitem__(self, name: str) -> Tenant:
        return self._tenants[name]

    def weight(self, name: str) -> float:
        """Of one that may be gone."""
        found = self._tenants.get(name)
        return 1.0 if found is None else found.weight

    def families(self) -> list[Family]:
        """For /metrics; as many series as there are keys in the configuration."""
        all_ = list(self._tenants.values())
        if not all_:
            return []
        return [
            ["penstock_tenant_requests_total", "counter", "Requests admitted, by tenant.",
             ["tenant"], *[[[t.name], t.admitted] for t in all_]],
            ["penstock_tenant_requests_live", "gauge", "Of these, not ended.",
             ["tenant"], *[[[t.name], t.live] for t in all_]],
            ["penstock_tenant_refused_total", "counter", "Requests refused, by what was reached.",
             ["tenant", "why"],
             *[[[t.name, why], n] for t in all_ for why, n in sorted(t.refused.items())]],
            ["penstock_tenant_tokens_total", "counter", "Tokens used, by tenant.",
             ["tenant"], *[[[t.name], round(t.tokens, 3)] for t in all_]],
        ]  # fmt: skip


def limits_of(key: KeyConfig, workers: int) -> TenantLimits | None:
    """One worker's part of the key's limits; None where it has none."""
    requests, tokens, concurrency = key.requests_per_s, key.tokens_per_minute, key.concurrency
    if requests is None and tokens is None and concurrency is None:
        return None
    return TenantLimits(
        requests_per_minute=None if requests is None else requests * 60.0 / workers,
        tokens_per_minute=None if tokens is None else tokens / workers,
        concurrency=None if concurrency is None else -(-concurrency // workers),
        burst_s=key.burst_s,
    )
