"""What a simulated gateway does about failing replicas: production's breakers, or Envoy's rules."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from bench.sim.routing_world import Retries, Verdict
from gateway.policy.breaker import Breaker, Ejection, Outcome, State, usable
from gateway.policy.load import ReplicaLoad
from gateway.policy.retry import Attempts, Failure, RetryBudget, RetryPolicy


class _Member:
    __slots__ = ("breaker", "load")

    def __init__(self, load: ReplicaLoad, breaker: Breaker) -> None:
        self.load, self.breaker = load, breaker


class _Watched:
    """A permit that begins slow start when its outcome closes the breaker."""

    def __init__(self, permit: Verdict, load: ReplicaLoad) -> None:
        self._permit, self._load = permit, load

    def record(self, now: float, outcome: Outcome) -> object:
        changed = self._permit.record(now, outcome)
        if changed is State.CLOSED:
            self._load.restart(now)
        return changed


class Breakers:
    """Production's: `Ejection`, `Breaker`, `RetryBudget` and `Attempts`."""

    def __init__(self, loads: Sequence[ReplicaLoad], rng: random.Random) -> None:
        self._ejection, self._rng = Ejection(), rng
        self._members = {
            load.name: _Member(load, self._ejection.add(load.name, rng=rng)) for load in loads
        }
        self._budget, self._policy = RetryBudget(), RetryPolicy()
        self._panic = False

    def usable(self, loads: Sequence[ReplicaLoad], now: float) -> Sequence[ReplicaLoad]:
        members = [self._members[load.name] for load in loads]
        able, self._panic = usable(members, len(self._members), now)
        return [member.load for member in able]

    def permit(self, load: ReplicaLoad, now: float) -> Verdict | None:
        permit = self._members[load.name].breaker.allow(now, panic=self._panic)
        return None if permit is None else _Watched(permit, load)

    def attempts(self, now: float, deadline: float) -> Retries:
        return Attempts(self._policy, self._budget, now, deadline, self._rng)

    def opened(self) -> Mapping[str, int]:
        return {name: member.breaker.opened for name, member in self._members.items()}


class _Tries:
    """Two retries, at once, on hosts not tried yet; no budget."""

    def __init__(self) -> None:
        self.tried: list[str] = []

    def failed(self, replica: str, why: Failure, now: float, others: int) -> float | None:
        self.tried.append(replica)
        return 0.0 if why is not Failure.TIMEOUT and len(self.tried) <= 2 else None


class _Count:
    def __init__(self, host: _Host) -> None:
        self._host = host

    def record(self, now: float, outcome: Outcome) -> None:
        host = self._host
        host.streak = 0 if outcome is Outcome.SUCCESS else host.streak + 1
        if host.streak >= 5 and now >= host.until and host.may_eject(now):
            host.count += 1
            host.streak = 0
            host.until = now + min(30.0 * host.count, 300.0)


class _Host:
    def __init__(self, hosts: dict[str, _Host]) -> None:
        self._hosts = hosts
        self.streak = self.count = 0
        self.until = 0.0

    def may_eject(self, now: float) -> bool:
        """At most a tenth of the hosts, but always one."""
        out = sum(host.until > now for host in self._hosts.values())
        return out < max(1, len(self._hosts) // 10)


class EnvoyOutliers:
    """Envoy's outlier detection by default: five failures in a row eject for 30 s × count."""

    def __init__(self, loads: Sequence[ReplicaLoad]) -> None:
        self._hosts: dict[str, _Host] = {}
        for load in loads:
            self._hosts[load.name] = _Host(self._hosts)

    def usable(self, loads: Sequence[ReplicaLoad], now: float) -> Sequence[ReplicaLoad]:
        able = [load for load in loads if self._hosts[load.name].until <= now]
        return able or loads

    def permit(self, load: ReplicaLoad, now: float) -> Verdict | None:
        return _Count(self._hosts[load.name])

    def attempts(self, now: float, deadline: float) -> Retries:
        return _Tries()

    def opened(self) -> Mapping[str, int]:
        return {name: host.count for name, host in self._hosts.items()}
