"""A request that the lane itself turns down, before any handler has it."""

from __future__ import annotations


class Refused(Exception):
    """`fields`: extra header lines, rendered. The connection closes after the answer."""

    def __init__(self, status: int, message: str, fields: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.message, self.fields = status, message, fields
