"""Every way in which the gateway refuses or fails a request, and what the client is told.

Subclasses go by who must act: the client, the load, the replica, or we. Foreign exceptions become
one of these at the boundary where they arise. `status` and `code` are public contract.
"""

from __future__ import annotations

from typing import ClassVar, Self


class GatewayError(Exception):
    """`message` is for the client and names the field at fault; `param` is that field's path.

    `retry_after` (seconds) is said only when it is known to be true. `retryable`: whether the same
    request may succeed elsewhere or later. `should_retry`: what SDKs are told about that, where we
    know better than they.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    should_retry: ClassVar[bool | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.retry_after = message, param, retry_after

    def detached(self) -> Self:
        """The same without where it was raised. An error that outlives its `except` block holds the
        frames of its traceback, they hold the request's body and the error: a cycle as large as
        the body, which only a collection would end."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


# --------------------------------------------------------------------------- the client must act


class BadRequest(GatewayError):
    status, code = 400, "invalid_request"


class Unauthorized(GatewayError):
    status, code = 401, "unauthorized"


class Forbidden(GatewayError):
    status, code = 403, "forbidden"


class NotFound(GatewayError):
    status, code = 404, "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(GatewayError):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class SlowClient(GatewayError):
    status, code = 408, "request_timeout"


class TooLarge(GatewayError):
    status, code = 413, "request_too_large"


class Unsupported(GatewayError):
    status, code = 501, "unsupported"


class Cancelled(GatewayError):
    """The client has gone; nobody reads this answer, but the counters do."""

    status, code = 499, "client_closed_request"


# ------------------------------------------------------------------------------ the load must fall


class Shed(GatewayError):
    """Refused for load: it would not be answered in time, or its queue is full."""

    status, code, retryable = 429, "overloaded", True
    should_retry = True


class LimitReached(GatewayError):
    """The tenant's own limit."""

    status, code, retryable = 429, "rate_limit_exceeded", True
    should_retry = True


class DeadlineExceeded(GatewayError):
    status, code, retryable = 504, "deadline_exceeded", True


# --------------------------------------------------------------------------- the replica must act


class ModelFailed(GatewayError):
    """The model raised on this item; others of its batch were answered."""

    status, code = 500, "model_error"


class ReplicaNonsense(GatewayError):
    """The replica died or answered what is no answer, and no other could be asked."""

    status, code, retryable = 502, "bad_replica", True


class Poisonous(GatewayError):
    """The request has killed a replica that had nothing else to do: it is not tried again, neither
    by us nor, please, by the client."""

    status, code = 502, "poisonous_request"
    should_retry = False


class ReplicaSilent(GatewayError):
    """The replica took the request, or began its answer, and then said nothing for too long."""

    status, code, retryable = 504, "replica_timeout", True


class NoReplica(GatewayError):
    status, code, retryable = 503, "no_healthy_replica", True


class ReplicaFault(GatewayError):
    """A fault that the replica itself reported, with the status and code that it chose."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status, self.code = status, code  # type: ignore[misc]
