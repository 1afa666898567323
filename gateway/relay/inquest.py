"""What http replicas of one model have died with: who is tried alone for it, and who is refused.

Owns the losses that a look at their replica still has to explain, and what becomes of the requests
that were lost. A connection that broke proves nothing; a replica that is not there any more, right
after that, does. Invariant: a request that waits for a look, or for a replica of its own, hears of
it, whatever the look finds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from gateway.errors import GatewayError, Poisonous
from gateway.policy.deaths import SUSPECT, DeathRecord, Standing
from gateway.quarantine import Quarantine

if TYPE_CHECKING:
    from gateway.http_replica import HttpReplica
    from gateway.relay.transit import Transit

# A suspect that its replica has survived for so long is alone no more: others wait. Twice as long
# for each further death, so that what kills slowly is found out too.
ALONE_S = 2.0

log = logging.getLogger(__name__)


class Death:
    """Connections of one replica that broke before it was found well again: if that was a death, it
    was one. `alone`: there was one, and its replica had nothing else. `counted`: requests that it
    is held against."""

    __slots__ = ("alone", "counted")

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self.counted: set[bytes] = set()


class Loss:
    """A connection that broke with a request on it."""

    __slots__ = ("death", "key", "transit")

    def __init__(self, transit: Transit, key: bytes, death: Death) -> None:
        self.transit, self.key, self.death = transit, key, death


class Inquest:
    """`pending`, `guarded`: whether anything has to be asked here when a request comes, and when a
    replica is chosen."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._record = DeathRecord()
        self._quarantine: Quarantine[HttpReplica, Transit] = Quarantine()
        self._sent: dict[HttpReplica, float] = {}  # when its suspect was
        self.pending = self.guarded = False

    # -------------------------------------------------------------------------- of those that come

    def received(self, transit: Transit, now: float) -> GatewayError | None:
        """It has come, for the first time or again: why it is refused, if it is."""
        self._record.expire(now)
        self._update()
        transit.digest = digest_of(transit)
        return self._judge(transit, now)

    def _judge(self, transit: Transit, now: float) -> GatewayError | None:
        key = transit.digest
        standing = self._record.standing(key, now)
        transit.suspect = standing is Standing.SUSPECT
        if standing is not Standing.CONVICTED:
            return None
        return Poisonous(
            f"{self._record.deaths(key)} replicas of {self._model!r} have died of this request, "
            "the last one alone with it; it is not tried again for "
            f"{self._record.sentence(key, now):.0f} s"
        )

    # ------------------------------------------------------------------------ of those that wait

    @property
    def waiting(self) -> int:
        return len(self._quarantine.waiting)

    def seat(self, transit: Transit, able: Sequence[HttpReplica]) -> HttpReplica | None:
        """A replica for a suspect, which has nothing else; None: it waits for one here."""
        quarantine = self._quarantine
        quarantine.wait([transit])
        self._update()
        quarantine.assign(able, lambda replica, request: True)
        ward = quarantine.ward
        if ward is None or quarantine.waiting[0] is not transit or not quarantine.admits(ward):
            return None
        return ward

    def sent(self, transit: Transit, replica: HttpReplica, now: float) -> None:
        self._quarantine.sent(transit, replica)
        self._sent[replica] = now
        self._update()

    def pump(self, now: float) -> None:
        """Let those that wait look for a replica, one after another."""
        while waiting := self._quarantine.waiting:
            waiting[0].seek(now)
            if self._quarantine.waiting[:1] == waiting[:1]:
                return  # it waits on, and the others behind it

    def admits(self, replica: HttpReplica) -> bool:
        """Whether it takes others than suspects."""
        quarantine = self._quarantine
        return quarantine.admits(replica) and not quarantine.only_suspects(replica)

    def look(self, now: float) -> None:
        """Let go of suspects that were alone for long enough."""
        for replica, transit in self._quarantine.held():
            extra = max(0, self._record.deaths(transit.digest) - SUSPECT)
            if now - self._sent[replica] >= ALONE_S * 2.0 ** min(extra, 8):
                self.landed(replica)

    def landed(self, replica: HttpReplica) -> None:
        """Its attempt has ended, or counts for alone no more."""
        self._quarantine.landed(replica)
        self._sent.pop(replica, None)
        self._update()

    def left(self, transit: Transit, *, well: bool) -> None:
        """It has ended; `well`: by an answer, which speaks for it."""
        self._quarantine.forget(transit)
        if well and self._record.survived(transit.digest):
            self._revise(transit.digest)
        self._update()

    # ----------------------------------------------------------------------- of those that are lost

    def lost(self, transit: Transit, replica: HttpReplica) -> bool:
        """Its connection broke. Whether it has to wait for what a look at the replica finds, since
        it was on board of one that died before."""
        death = replica.death
        if death is None:
            death = replica.death = Death(alone=replica.load.in_flight == 1)
        else:
            death.alone = False
        if not transit.digest:
            transit.digest = digest_of(transit)
        if not transit.digest:
            return False  # nobody could know it again
        replica.losses.append(Loss(transit, transit.digest, death))
        replica.look_soon()
        return self._record.deaths(transit.digest) > 0

    def looked(self, losses: Sequence[Loss], now: float, *, gone: bool) -> None:
        """At the replica of these; `gone`: it is not there any more."""
        for loss in losses if gone else ():
            if loss.key not in loss.death.counted:
                loss.death.counted.add(loss.key)
                self._record.died(loss.key, now, alone=loss.death.alone)
                if self._record.sentence(loss.key, now):
                    log.error(
                        "model=%s replicas=%d killed by one request, the last alone with it: %s",
                        self._model,
                        self._record.deaths(loss.key),
                        loss.transit.request_name,
                    )
        for loss in losses:
            transit = loss.transit
            if not transit.awaits_look:
                continue
            transit.awaits_look = False
            self._again(transit, now)
        for key in {loss.key for loss in losses} if gone else ():
            self._revise(key)
        self._update()

    def _revise(self, key: bytes) -> None:
        """What is known of this request has changed; others that ask the same may wait."""
        for transit in self._quarantine.waiting:
            if transit.digest == key:
                self._quarantine.forget(transit)
                self._again(transit, transit.pool.loop.time())

    def _again(self, transit: Transit, now: float) -> None:
        refused = self._judge(transit, now)
        if refused is not None:
            transit.abandon(refused)
        else:
            transit.seek(now)

    def _update(self) -> None:
        self.pending = bool(self._record)
        self.guarded = bool(self._quarantine)


def digest_of(transit: Transit) -> bytes:
    """What it asks for; empty where that is not known whole."""
    body = transit.kept_body
    if body is None:
        return b""
    head = transit.exchange.head
    asked = f"{head.method} {head.path}?{head.query}".encode()
    state = blake2b(asked, digest_size=16)
    state.update(b"\0")
    state.update(body)
    return state.digest()
