"""A tensor request inside the gateway, between the surface that read it and the replica.

Owns the one terminal event: whatever happens, `finish` reaches the surface exactly once, first
come, first served; later calls do nothing. Everything else about a request is data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from backends.wire import Buffer
from gateway.errors import Cancelled, GatewayError
from gateway.policy.concurrency import ConcurrencyLimit
from gateway.policy.load import Lease


class Tensor(NamedTuple):
    """`shape` has the batch first. `data`: little-endian, row-major; BYTES as OIP's u32 length and
    payload per element. A view of the client's body or of the replica's frame where possible."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


class Answer(NamedTuple):
    """What a replica made of a request. Times in microseconds; `batch`: rows executed together."""

    outputs: tuple[Tensor, ...]
    version: str
    replica: str
    queue_us: int  # in the gateway's queue and at the replica's intake
    compute_us: int
    batch: int


class TensorRequest:
    """`inputs` follow the signature's order and all have `rows` rows. `key`: requests with equal
    keys may share a batch. `deadline` is absolute in the loop's time, infinite where none is set.
    `version` pins one; `session` names the session, if any. `priority`: 0 is ordinary, lower is
    later, higher is sooner.
    """

    __slots__ = (
        "_on_done",
        "arrived",
        "attempts",
        "cancel",
        "deadline",
        "deaths",
        "finished",
        "flight",
        "hold",
        "inputs",
        "key",
        "priority",
        "rows",
        "seat",
        "session",
        "tenant",
        "version",
    )

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        rows: int,
        key: Hashable,
        on_done: Callable[[Answer | GatewayError], None],
        *,
        arrived: float,
        deadline: float = float("inf"),
        priority: int = 0,
        session: str | None = None,
        version: str | None = None,
        tenant: str = "",
    ) -> None:
        self.inputs, self.rows = inputs, rows
        self.key: Any = key
        self.arrived, self.deadline, self.priority = arrived, deadline, priority
        self.session, self.version, self.tenant = session, version, tenant
        # The dispatcher's: how often it was sent, of which the replica died; its present flight.
        self.attempts = self.deaths = 0
        self.flight: object | None = None
        # What it holds of the replica that its session is bound to.
        self.seat: Lease | None = None
        # Its place in its model's adaptive limit, where that has one.
        self.hold: ConcurrencyLimit | None = None
        self.finished = False
        self._on_done = on_done
        # Set while the request waits or runs: takes it out of there. Called by `gone`.
        self.cancel: Callable[[TensorRequest], None] | None = None

    def finish(self, outcome: Answer | GatewayError) -> bool:
        """The terminal event. False when the request had ended before."""
        if self.finished:
            return False
        self.finished, self.cancel = True, None
        self._on_done(outcome)
        return True

    def gone(self) -> None:
        """The client has closed: end as cancelled, give up what is held."""
        cancel = self.cancel
        if self.finish(Cancelled("the client closed the connection")) and cancel is not None:
            cancel(self)
