"""The RESULT of a job: its requests' shares, in their order, as one frame.

Owns the meta and the order of the bytes; loads no torch, so that it runs on the socket thread.
Invariant: each request has either its rows of every output or an entry in `errors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from backends.tensor.job import Job
from backends.wire import Buffer, Fault, Kind, Signature, encode, result_meta

Dims = tuple[int, ...]


class Share(NamedTuple):
    """Requests `first` to `last` of a job got these outputs; `dims` (without batch) and `data` per
    output."""

    first: int
    last: int
    rows: int
    dims: tuple[Dims, ...]
    data: tuple[Buffer, ...]


class Outcome(NamedTuple):
    """What became of a job. `faults` by request; times in microseconds; `batch` rows together."""

    shares: Sequence[Share]
    faults: Mapping[int, Fault]
    signature: Signature
    version: str
    queue_us: int
    compute_us: int
    batch: int


def result_frame(job: Job, outcome: Outcome) -> list[Buffer]:
    shares, faults, signature = outcome.shares, outcome.faults, outcome.signature
    if len(shares) == 1 and not faults:
        dims, data = shares[0].dims, shares[0].data
        whole = [
            (spec.name, spec.datatype, (job.total, *own))
            for spec, own in zip(signature.outputs, dims, strict=True)
        ]
        return _frame(job, outcome, whole, job.rows, [len(part) for part in data], data)
    shares = sorted(shares)
    rows = [0 if i in faults else count for i, count in enumerate(job.rows)]
    heads: list[tuple[str, str, Dims]] = []
    sizes: list[int] = []
    buffers: list[Buffer] = []
    shapes: dict[str, list[Dims]] = {}
    for i, spec in enumerate(signature.outputs if shares else ()):
        own = [share.data[i] for share in shares]
        tail = shares[0].dims[i]
        if any(share.dims[i] != tail for share in shares):
            columns = zip(*[share.dims[i] for share in shares], strict=True)
            tail = tuple(-1 if len(set(same)) > 1 else same[0] for same in columns)
            shapes[spec.name] = _shapes(shares, rows, i)
        heads.append((spec.name, spec.datatype, (sum(rows), *tail)))
        sizes.append(sum(map(len, own)))
        buffers += own
    errors = {str(i): fault.to_json() for i, fault in sorted(faults.items())}
    return _frame(job, outcome, heads, rows, sizes, buffers, errors, shapes)


def _shapes(shares: Sequence[Share], rows: Sequence[int], output: int) -> list[Dims]:
    """Each request's own shape; a failed one has no rows of the first share's."""
    shapes = [(0, *shares[0].dims[output])] * len(rows)
    for share in shares:
        for request in range(share.first, share.last):
            shapes[request] = (rows[request], *share.dims[output])
    return shapes


def _frame(
    job: Job,
    outcome: Outcome,
    heads: Sequence[tuple[str, str, Dims]],
    rows: Sequence[int],
    sizes: Sequence[int],
    data: Sequence[Buffer],
    errors: dict[str, dict[str, Any]] | None = None,
    shapes: Mapping[str, Sequence[Dims]] | None = None,
) -> list[Buffer]:
    meta = result_meta(
        heads,
        rows,
        sizes=sizes,
        version=outcome.version,
        queue_us=outcome.queue_us,
        compute_us=outcome.compute_us,
        batch=outcome.batch,
        errors=errors,
        shapes=shapes,
    )
    return encode(Kind.RESULT, job.id, meta, data)
