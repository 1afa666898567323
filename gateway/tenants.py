"""Who a request belongs to, what that tenant may use, and what it has used.

Owns the tenants of one worker, made from the configured keys, and what is counted of each. It knows
no key: `auth` finds the tenant of a request. Invariants: each visit ends once; for each tenant,
admitted = ended + live; a tenant's accounts outlive a change of the configuration.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config_access import KeyConfig
from gateway.errors import Forbidden, LimitReached
from gateway.measures import Family
from gateway.policy.admission import Admission, Admitted, Refused, TenantLimits
from gateway.tally import LIVE, REQUESTS, TOKENS, Tally

if TYPE_CHECKING:
    from gateway.lane import Exchange

log = logging.getLogger(__name__)

# Keys with series of their own: what a scrape costs a worker, under 2 ms for so many, and a
# Prometheus has to keep, is bounded.
SHOWN = 1000
LEAST_ACCOUNTS = 4096
OTHERS = "(other)"  # no key can have this name
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
            reserved = self._admitted.reserved
            used = reserved if tokens is None else tokens
            tenant.live -= 1
            tenant.tokens += used
            if tenant.shared is not None:
                tenant.shared.ended(used - reserved)


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
        "shared",
        "tokens",
    )

    def __init__(self, config: KeyConfig, admission: Admission, clock: Callable[[], float]) -> None:
        self.name, self.config, self.clock = config.name, config, clock
        self.shared: Share | None = None  # where it has limits and there are more workers
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
        now, elsewhere = self.clock(), 0
        if self.shared is not None:
            elsewhere = self.shared.catch_up(self._admission, now)
        admitted = self._admission.admit(self.name, now, tokens=tokens, elsewhere=elsewhere)
        if isinstance(admitted, Refused):
            self.refused[admitted.reason] += 1
            raise LimitReached(
                f"the key {self.name!r} has reached its limit of {_LIMITS[admitted.reason]}",
                retry_after=admitted.retry_after,
            )
        self.admitted += 1
        self.live += 1
        if self.shared is not None:
            self.shared.began(tokens)
        return Visit(self, admitted)

    def enter(self, exchange: Exchange, model: str, tokens: float = 0.0) -> Visit:
        """As `take`, for a request that ends with its exchange."""
        visit = self.take(model, tokens)
        exchange.on_end = visit.end
        return visit


class Share:
    """One tenant's part of the tally: what the other workers have let in counts here too."""

    __slots__ = ("_requests", "_tally", "_tenant", "_tokens")

    def __init__(self, tally: Tally, tenant: str, live: int) -> None:
        self._tally, self._tenant = tally, tenant
        self._requests = tally.others(tenant, REQUESTS)
        self._tokens = tally.others(tenant, TOKENS)
        tally.add(tenant, LIVE, live)

    def catch_up(self, admission: Admission, now: float) -> int:
        """Charge what others have let in since; how many of theirs are in flight."""
        tally, tenant = self._tally, self._tenant
        requests, tokens = tally.others(tenant, REQUESTS), tally.others(tenant, TOKENS)
        if requests != self._requests or tokens != self._tokens:
            admission.charge(tenant, now, requests - self._requests, tokens - self._tokens)
            self._requests, self._tokens = requests, tokens
        return max(0, int(tally.others(tenant, LIVE)))

    def began(self, tokens: float) -> None:
        tally, tenant = self._tally, self._tenant
        tally.add(tenant, REQUESTS, 1.0)
        tally.add(tenant, LIVE, 1.0)
        tally.add(tenant, TOKENS, tokens)

    def ended(self, difference: float) -> None:
        """It has used so many tokens more than were reserved."""
        self._tally.add(self._tenant, LIVE, -1.0)
        self._tally.add(self._tenant, TOKENS, difference)


class Tenants:
    """All of a worker's. `folder`: the gateway's own, where its workers share what they count; left
    out, each worker keeps to its part of the limits."""

    def __init__(self, clock: Callable[[], float], folder: Path | None = None) -> None:
        self._clock, self._folder = clock, folder
        self._tally: Tally | None = None
        self._tenants: dict[str, Tenant] = {}
        self._limits: dict[str, tuple[KeyConfig, TenantLimits]] = {}  # with what they are made of
        self._parts = 1  # of the configured limits, that each worker has
        self._admission = Admission(self._limits_of)

    def apply(self, keys: Sequence[KeyConfig], workers: int) -> None:
        """Tenants of removed keys stay as long as requests hold them; nobody finds them."""
        for tenant in self._tenants.values():
            tenant.shared = None
        self._tenants = {key.name: self._tenant(key) for key in keys}
        # Room for all, and for those of before that have not been forgotten yet.
        self._admission.capacity = max(LEAST_ACCOUNTS, 2 * len(keys))
        limited = [key for key in keys if is_limited(key)]
        tally = self._share([key.name for key in limited], workers)
        self._parts, before = 1 if tally is not None else workers, self._parts
        stay = self._limits if self._parts == before else {}
        self._limits = {}
        for key in limited:
            made = stay.get(key.name)
            if made is not None and made[0] == key:
                self._limits[key.name] = made
            if tally is not None:
                tenant = self._tenants[key.name]
                tenant.shared = Share(tally, key.name, tenant.live)

    def _limits_of(self, name: str) -> TenantLimits | None:
        """Made when they are first wanted: thousands at once would keep requests waiting."""
        made = self._limits.get(name)
        if made is None:
            tenant = self._tenants.get(name)
            if tenant is None or not is_limited(tenant.config):
                return None
            made = self._limits[name] = tenant.config, limits_of(tenant.config, self._parts)
        return made[1]

    def _share(self, names: Sequence[str], workers: int) -> Tally | None:
        """The tally of these tenants; None where there is nobody to share with."""
        old, self._tally = self._tally, None
        if old is not None:
            old.close()
        if self._folder is None or workers < 2 or not names:
            return None
        try:
            self._tally = Tally(self._folder, names, workers)
        except OSError as error:
            log.error("limits are kept by each worker alone: %s", error)
        return self._tally

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
        """For /metrics: a series for each of the first `SHOWN` keys in the configuration, and one
        for all others together."""
        all_ = list(self._tenants.values())
        if not all_:
            return []
        shown, others = all_[:SHOWN], all_[SHOWN:]
        said = [(t.name, t.admitted, t.live, t.tokens) for t in shown]
        refused = [([t.name, why], n) for t in shown for why, n in sorted(t.refused.items())]
        if others:
            sums = (sum(t.admitted for t in others), sum(t.live for t in others))
            said.append((OTHERS, *sums, sum(t.tokens for t in others)))
            whys: Counter[str] = Counter()
            for tenant in others:
                whys.update(tenant.refused)
            refused += [([OTHERS, why], n) for why, n in sorted(whys.items())]
        return [
            ["penstock_tenant_requests_total", "counter", "Requests admitted, by tenant.",
             ["tenant"], *[[[name], admitted] for name, admitted, _, _ in said]],
            ["penstock_tenant_requests_live", "gauge", "Of these, not ended.",
             ["tenant"], *[[[name], live] for name, _, live, _ in said]],
            ["penstock_tenant_refused_total", "counter", "Requests refused, by what was reached.",
             ["tenant", "why"], *[[labels, n] for labels, n in refused]],
            ["penstock_tenant_tokens_total", "counter", "Tokens used, by tenant.",
             ["tenant"], *[[[name], round(tokens, 3)] for name, _, _, tokens in said]],
        ]  # fmt: skip


def is_limited(key: KeyConfig) -> bool:
    limits = (key.requests_per_s, key.tokens_per_minute, key.concurrency)
    return limits != (None, None, None)


def limits_of(key: KeyConfig, workers: int) -> TenantLimits:
    """One worker's part of the key's limits."""
    requests, tokens, concurrency = key.requests_per_s, key.tokens_per_minute, key.concurrency
    return TenantLimits(
        requests_per_minute=None if requests is None else requests * 60.0 / workers,
        tokens_per_minute=None if tokens is None else tokens / workers,
        concurrency=None if concurrency is None else -(-concurrency // workers),
        burst_s=key.burst_s,
    )
