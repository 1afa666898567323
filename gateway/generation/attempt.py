"""A call at one replica, and what that replica says of it.

Owns the reading of pieces' infos and of faults; what follows from them is `call`'s to decide.
Invariant: an attempt whose call has let go of it hears nothing any more, though the terminal answer
to a call that was cancelled still comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.wire import Fault, Piece
from gateway.errors import ReplicaFault
from gateway.policy.breaker import Outcome, Permit
from gateway.policy.load import Lease
from gateway.policy.tokens import Usage

if TYPE_CHECKING:
    from gateway.generation.call import LiveCall
    from gateway.replica import NativeReplica


class Attempt:
    """Whom the link tells of the call. `promised`: bytes of its prompt that the replica should have
    cached."""

    __slots__ = (
        "call",
        "heard",
        "id",
        "lease",
        "load",
        "permit",
        "promised",
        "replica",
        "said",
        "sent",
        "streams",
        "version",
    )

    def __init__(
        self,
        call: LiveCall,
        replica: NativeReplica,
        lease: Lease,
        permit: Permit,
        now: float,
        promised: int,
    ) -> None:
        self.call: LiveCall | None = call
        self.replica, self.lease, self.permit = replica, lease, permit
        self.sent = self.heard = now
        self.promised = promised
        self.id = 0
        self.said = self.streams = False  # the answer's type, and whether it is one of a stream
        self.load: dict[str, float] | None = None  # of the replica, as its final piece has it
        self.version = ""

    def piece(self, piece: Piece, data: memoryview) -> None:
        if self.call is not None:
            if piece.final:
                self.id = 0
            self.call.answered(piece, data, self)

    def failed(self, fault: Fault | None) -> None:
        if self.call is not None:
            self.call.lost(fault)


def usage_of(said: dict[str, Any] | None) -> Usage:
    """Zeros where the replica says nothing that is a count."""
    said = said or {}
    counts = [said.get(f"{name}_tokens") for name in ("prompt", "completion", "cached")]
    return Usage(*(count if type(count) is int and count > 0 else 0 for count in counts))


def error_of(fault: Fault) -> ReplicaFault:
    return ReplicaFault(fault.status, fault.code, fault.message, param=fault.param)


def outcome_of(status: int) -> Outcome:
    """Of a fault: what the client did wrong, back-pressure and deadlines say nothing of health."""
    if status < 500 or status in (503, 504):
        return Outcome.NEUTRAL
    return Outcome.FAILURE
