"""Messages of the wire: what the meta of each frame says, and how pieces of streams travel.

Owns the typed form of every meta. A replica and a gateway of one protocol version agree on nothing
beyond this file and `frames`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from backends.wire.frames import Buffer, Frame, Kind, WireError, encode

# A gathered tensor in EXECUTE or RESULT: (name, datatype, shape with the batch dimension first).
# Its bytes follow in the frame's data in this order: little-endian, row-major, BYTES as in OIP.
TensorHead = tuple[str, str, Sequence[int]]
# The shape of each request's part of a tensor, the batch dimension first.
Shapes = Sequence[Sequence[int]]
# The forms of a CALL's body and of its reply.
GENERATIVE = ("chat", "completions", "responses", "generate", "generate_stream", "ws")
SURFACES = (*GENERATIVE, "embeddings")


def execute_meta(
    inputs: Sequence[TensorHead],
    rows: Sequence[int],
    *,
    sizes: Sequence[int],
    version: str | None = None,
    deadlines_ms: Sequence[float | None] | None = None,
    shapes: Mapping[str, Shapes] | None = None,
) -> dict[str, Any]:
    """EXECUTE: `rows[i]` rows of every input belong to request i; `sizes` are bytes per input.

    `version` pins a version (None: what the replica serves now); `deadlines_ms` is the time left
    to each request when the frame was made. `shapes` names the inputs whose requests differ in a
    variable dimension: their own shapes, one a request; the head then says -1 there.
    """
    meta: dict[str, Any] = {"inputs": inputs, "rows": rows, "sizes": sizes}
    if shapes:
        meta["shapes"] = shapes
    if version is not None:
        meta["version"] = version
    if deadlines_ms is not None:
        meta["deadlines_ms"] = deadlines_ms
    return meta


def result_meta(
    outputs: Sequence[TensorHead],
    rows: Sequence[int],
    *,
    sizes: Sequence[int],
    version: str,
    queue_us: int,
    compute_us: int,
    batch: int,
    errors: dict[str, dict[str, Any]] | None = None,
    shapes: Mapping[str, Shapes] | None = None,
) -> dict[str, Any]:
    """RESULT: `rows[i]` rows of every output belong to request i; 0 rows where it failed.

    `errors` maps the request's index (as a string) to a `Fault.to_json()`. `batch` is how many rows
    the device executed together, which may be more than this frame's: a replica joins the frames
    of several gateways. `version` answers for every row of the frame. `shapes` as in EXECUTE.
    """
    meta: dict[str, Any] = {
        "outputs": outputs,
        "rows": rows,
        "sizes": sizes,
        "version": version,
        "queue_us": queue_us,
        "compute_us": compute_us,
        "batch": batch,
    }
    if errors:
        meta["errors"] = errors
    if shapes:
        meta["shapes"] = shapes
    return meta


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """CALL's meta. `surface`, one of SURFACES, names the form of the body and of the reply. The
    replica renders the reply's bytes (SSE events included); the gateway relays them. On ws the
    reply is JSON objects, one a line: each is a delta's fields, and the last one the result's.
    `deadline_ms` is what was left when the frame was made. A higher `priority` goes first; 0 is
    ordinary. `tenant` is what fairness is between; `version` pins one."""

    surface: str
    request_id: str = ""
    deadline_ms: float | None = None
    priority: int = 0
    tenant: str = ""
    version: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, meta: dict[str, Any]) -> Call:
        return cls(**meta)


class Piece(NamedTuple):
    """One entry of STREAM's meta: `size` bytes of the frame's data belong to CALL `id`.

    The first piece of a call carries info {"type": content type, "version": version}; the final
    piece carries info {"usage": {"prompt_tokens", "completion_tokens", "cached_tokens"}}, and may
    carry {"load": as in STATUS}. The final piece of an answer that could not go on carries
    {"fault": a `Fault`}, and its data says so in the answer's own form.
    """

    id: int
    size: int
    final: bool
    info: dict[str, Any] | None = None


def stream_frame(pieces: Iterable[tuple[Piece, Buffer]]) -> list[Buffer]:
    """Pieces of many calls as one frame: one write and one wake-up per step of the engine."""
    meta: list[Piece] = []
    data: list[Buffer] = []
    for piece, buffer in pieces:
        meta.append(piece)
        data.append(buffer)
    return encode(Kind.STREAM, 0, [tuple(piece) for piece in meta], data)


def split_stream(frame: Frame) -> list[tuple[Piece, memoryview]]:
    """The inverse of `stream_frame`. Raises WireError when sizes and data disagree."""
    out: list[tuple[Piece, memoryview]] = []
    at = 0
    for id, size, final, info in frame.json():
        out.append((Piece(id, size, final, info), frame.data[at : at + size]))
        at += size
    if at != len(frame.data):
        raise WireError(f"STREAM pieces name {at} bytes, the frame carries {len(frame.data)}")
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """ERROR's meta, and one entry of RESULT's errors. `status` and `code` are the client's."""

    status: int
    code: str
    message: str
    param: str | None = None
    # Whether another replica may succeed where this one failed.
    retryable: bool = False

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, fault: dict[str, Any]) -> Fault:
        return cls(**fault)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """STATUS's meta: everything a gateway knows of a replica comes from the newest one.

    `kind`: tensor or llm. `state`: loading, ready, draining or failed (`reason` says why).
    `version` serves new requests; `versions` are all that can be pinned now. `generation` is the
    channel's generation that the replica follows. `reload` is the state of the reload protocol
    (idle, admit, load, verify, ready, swap, probation) and `reload_to` the version it loads; at
    ready it waits for `swap`. `channel` is what it follows, and `refused` are versions of it that
    it does not serve; `goal` is what the channel has it serve, as far as it has seen the channel,
    and `goal_generation` the generation of that.
    `crowded` names a version that fits only in a new process, which should take this one's place.
    `slots`: batches that the replica takes at a time; of CALLs, requests that run together.
    `surfaces`: the forms of CALL that it answers; an llm that names none answers all of GENERATIVE.
    `load`: numbers for routing (an LLM's waiting and running sequences, free pages, tokens per
    second).
    """

    model: str
    kind: str
    state: str
    reason: str = ""
    version: str = ""
    versions: tuple[str, ...] = ()
    generation: int = 0
    reload: str = "idle"
    reload_to: str = ""
    channel: str = ""
    refused: tuple[str, ...] = ()
    slots: int = 1
    pid: int = 0
    signature: dict[str, Any] | None = None
    load: dict[str, float] | None = None
    surfaces: tuple[str, ...] = ()
    crowded: str = ""
    goal: str = ""
    goal_generation: int = 0

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, meta: dict[str, Any]) -> Status:
        """What is not known here, a newer replica says: it is left out."""
        lists = {name: tuple(meta.get(name, ())) for name in ("versions", "refused", "surfaces")}
        known = {name: value for name, value in meta.items() if name in cls.__slots__}
        return cls(**{**known, **lists})
