"""A short closed-loop load, by wrk where it is and by our own generator elsewhere.

Owns the choice between them. A burst with failed requests is no figure: MeasureFailed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.load import generator, wrk
from bench.load.spec import LoadSpec
from bench.series import MeasureFailed


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """Good answers, the seconds that they took, and latencies in seconds. `limit`: how the
    generator was the limit, if it was."""

    ok: int
    seconds: float
    p50: float
    p99: float
    limit: str | None = None

    @property
    def rate(self) -> float:
        return self.ok / self.seconds


@dataclass(frozen=True, slots=True)
class Generator:
    """`use_wrk` None: if it is installed."""

    use_wrk: bool | None = None

    @property
    def name(self) -> str:
        return "wrk" if self._wrk else "own"

    @property
    def _wrk(self) -> bool:
        return wrk.available() if self.use_wrk is None else self.use_wrk

    def burst(
        self, url: str, body: bytes, headers: Mapping[str, str], *, connections: int, seconds: int
    ) -> Burst:
        """POST `body` on every connection, again when it is answered. Raises MeasureFailed."""
        if self._wrk:
            try:
                found = wrk.run(url, body, headers, connections=connections, seconds=seconds)
            except wrk.WrkFailed as error:
                raise MeasureFailed(str(error)) from error
            _refuse_failures(found.failed, found.requests)
            return Burst(ok=found.requests, seconds=found.seconds, p50=found.p50, p99=found.p99)
        spec = LoadSpec(
            url=url, body=body, headers=headers, connections=connections, seconds=seconds
        )
        try:
            report = generator.run(spec)
        except generator.LoadFailed as error:
            raise MeasureFailed(str(error)) from error
        _refuse_failures(report.failed, report.sent)
        return Burst(
            ok=report.ok,
            seconds=report.seconds,
            p50=report.latency.percentile(50),
            p99=report.latency.percentile(99),
            limit=report.limit if connections > 1 else None,
        )


def _refuse_failures(failed: int, sent: int) -> None:
    if failed:
        raise MeasureFailed(f"{failed} of {sent} requests failed")
    if not sent:
        raise MeasureFailed("it answered no request")
