"""Every way in which a replica refuses or fails a frame, a request or its own start.

Subclasses go by who must act: the gateway, the load, the model's author, or the operator. Foreign
exceptions become one of these at the boundary where they arise; `fault` is what the wire carries.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from backends.wire import Fault

# A model may put a whole tensor into its message; the client needs its beginning.
MAX_MESSAGE = 500


class BackendError(Exception):
    """`message` names the field at fault, `param` is that field. `retryable`: whether another
    replica may succeed where this one did not."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param

    def fault(self) -> Fault:
        return Fault(
            status=self.status,
            code=self.code,
            message=self.message[:MAX_MESSAGE],
            param=self.param,
            retryable=self.retryable,
        )


# -------------------------------------------------------------------------- the gateway must act


class BadFrame(BackendError):
    """The frame does not fit the signature, or contradicts itself."""

    status, code = 400, "invalid_request"


class VersionNotFound(BackendError):
    """Pinned to a version that is not live here; it may be live elsewhere."""

    status, code, retryable = 404, "model_version_not_found", True


class Unsupported(BackendError):
    status, code = 501, "unsupported"


class Cancelled(BackendError):
    status, code = 499, "client_closed_request"


class Conflict(BackendError):
    """The replica is not in a state in which this operation means anything."""

    status, code = 409, "conflict"


# ----------------------------------------------------------------------------- the load must fall


class Overloaded(BackendError):
    status, code, retryable = 429, "overloaded", True


class DeadlineExceeded(BackendError):
    status, code = 504, "deadline_exceeded"


class NotReady(BackendError):
    """Loading, draining or failed: the message says which and why."""

    status, code, retryable = 503, "not_ready", True


# --------------------------------------------------------------------- the model's author must act


class ModelFailed(BackendError):
    """The model raised on this item, or could not be built or warmed up."""

    status, code = 500, "model_error"

    @classmethod
    def raised(cls, error: BaseException) -> ModelFailed:
        text = str(error)
        return cls(f"{type(error).__name__}: {text}" if text else type(error).__name__)


class SignatureBreach(ModelFailed):
    """The model returned what its signature does not promise; `param` is the output."""


# ------------------------------------------------------------------------- the operator must act


class ConfigError(BackendError):
    """The replica's file cannot be used; the message has file, line where known, and key."""

    code = "invalid_config"

    def __init__(self, file: Path, key: str, expected: str, *, line: int | None = None) -> None:
        where = f"{file}:{line}" if line is not None else str(file)
        super().__init__(f"{where}: {key}: {expected}" if key else f"{where}: {expected}")
        self.file, self.key, self.expected, self.line = file, key, expected, line


class CannotListen(BackendError):
    code = "cannot_listen"
