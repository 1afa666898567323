"""The wire between a gateway and a native replica: frames over one stream socket (UDS or TCP).

Owns the frame layout, the meaning of each frame and the tensor types. It opens no socket and loads
no torch: the gateway imports this module and nothing else from `backends`. Invariant: a decoder
yields exactly the frames that were encoded, however the bytes were cut up on the way, and refuses
anything else before it allocates for it.

    0      2    3     4          8          12                  20
    +------+----+-----+----------+----------+-------------------+------------+-------------+
    | magic| ver| kind| meta_len | data_len | id                | meta (JSON)| data (raw)  |
    +------+----+-----+----------+----------+-------------------+------------+-------------+
      u16    u8   u8    u32        u32        u64                 meta_len     data_len

Integers are little-endian. `id` names the request within its connection; 0 names the connection.

Every request frame (EXECUTE, CALL, CONTROL) gets exactly one terminal answer: RESULT, the final
piece of STREAM, REPLY, or ERROR. CANCEL asks for that answer soon; it does not replace it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import orjson

MAGIC = 0x5350
VERSION = 1
HEADER = struct.Struct("<HBBIIQ")
# Larger than any tensor batch seen so far; a corrupt length cannot take the host's memory.
MAX_FRAME = 512 * 1024 * 1024
# One read's worth; frames that fit are copied out of it, larger ones get their own buffer.
SCRATCH = 256 * 1024

Buffer = bytes | bytearray | memoryview


class WireError(Exception):
    """The peer sent bytes that are no frame; the connection cannot be trusted any more."""


class Kind(IntEnum):
    """What a frame means. g→r: gateway to replica. Meta is JSON with the keys given here.

    HELLO    g→r  {gateway, protocol}: the first frame of a connection.
    STATUS   r→g  the replica's whole state (see `Status`): answers HELLO, sent again on change.
    EXECUTE  g→r  one batch of requests (see `execute_meta`); data: gathered inputs in order.
    RESULT   r→g  the outputs of an EXECUTE (see `result_meta`); data: gathered outputs in order.
    CALL     g→r  one generative request; data: its JSON body as the client sent it (see `Call`).
    STREAM   r→g  pieces of many CALLs in one frame (see `Piece`); data: the pieces in order.
    CANCEL   g→r  the client of `id` has gone; no meta.
    CONTROL  g→r  {op, …}: an operation on the replica (reload, rollback, drain, …).
    REPLY    r→g  the answer to a CONTROL; meta is operation specific.
    ERROR    r→g  `id` failed as a whole (see `Fault`).
    PING     both no meta; answered by PONG with the same id.
    """

    HELLO = 1
    STATUS = 2
    EXECUTE = 3
    RESULT = 4
    CALL = 5
    STREAM = 6
    CANCEL = 7
    CONTROL = 8
    REPLY = 9
    ERROR = 10
    PING = 11
    PONG = 12


_KINDS = frozenset(int(kind) for kind in Kind)


class Frame(NamedTuple):
    kind: int
    id: int
    meta: Buffer
    data: memoryview

    def json(self) -> Any:
        """The meta as Python objects. Raises WireError when it is no JSON."""
        try:
            return orjson.loads(self.meta) if len(self.meta) else {}
        except orjson.JSONDecodeError as error:
            raise WireError(f"frame {self.kind} carries meta that is not JSON") from error


def encode(kind: int, id: int, meta: Any = None, data: Sequence[Buffer] = ()) -> list[Buffer]:
    """One frame as buffers for `transport.writelines`; tensor bytes are passed on, never copied."""
    packed = b"" if meta is None else orjson.dumps(meta)
    size = 0
    for buffer in data:
        size += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
    if len(packed) + size > MAX_FRAME:
        raise WireError(f"a frame of {len(packed) + size} bytes is over the limit of {MAX_FRAME}")
    head = HEADER.pack(MAGIC, VERSION, kind, len(packed), size, id) + packed
    return [head, *data] if size else [head]


class Decoder:
    """Cuts a byte stream into frames; made for `asyncio.BufferedProtocol`, usable with `feed`.

    Small frames are read many at a time into one scratch buffer and copied out once. A frame that
    does not fit there gets a buffer of its own, which the socket then fills directly.
    """

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max = max_frame
        self._scratch = bytearray(SCRATCH)
        self._view = memoryview(self._scratch)
        self._end = 0
        # A large frame on its way: its header, its own buffer and how much of that is filled.
        self._large: tuple[int, int, int] | None = None
        self._body = bytearray()
        self._filled = 0

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._large is not None:
            return memoryview(self._body)[self._filled :]
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> list[Frame]:
        """`nbytes` were written to `get_buffer()`: the frames that are now complete."""
        if self._large is not None:
            self._filled += nbytes
            return self._finish_large()
        self._end += nbytes
        return self._parse()

    def feed(self, data: Buffer) -> list[Frame]:
        """The same for bytes that already lie elsewhere; copies them."""
        frames: list[Frame] = []
        rest = memoryview(data)
        while len(rest):
            room = self.get_buffer()
            taken = min(len(room), len(rest))
            room[:taken] = rest[:taken]
            room.release()
            rest = rest[taken:]
            frames += self.buffer_updated(taken)
        return frames

    def _finish_large(self) -> list[Frame]:
        assert self._large is not None
        if self._filled < len(self._body):
            return []
        kind, id, meta_len = self._large
        view = memoryview(self._body)
        self._large, self._body, self._filled = None, bytearray(), 0
        return [Frame(kind, id, view[:meta_len], view[meta_len:])]

    def _parse(self) -> list[Frame]:
        frames: list[Frame] = []
        at, end, view = 0, self._end, self._view
        while end - at >= HEADER.size:
            kind, id, meta_len, data_len = self._header(at)
            start, total = at + HEADER.size, meta_len + data_len
            if end - start < total:
                if HEADER.size + total > SCRATCH:
                    self._start_large(kind, id, meta_len, total, start)
                    return frames
                break
            body = bytes(view[start : start + total])
            frames.append(Frame(kind, id, body[:meta_len], memoryview(body)[meta_len:]))
            at = start + total
        if at:
            self._scratch[: end - at] = self._scratch[at:end]
            self._end = end - at
        return frames

    def _header(self, at: int) -> tuple[int, int, int, int]:
        magic, version, kind, meta_len, data_len, id = HEADER.unpack_from(self._scratch, at)
        if magic != MAGIC:
            raise WireError(f"expected a frame, got bytes that start with 0x{magic:04x}")
        if version != VERSION:
            raise WireError(f"peer speaks wire version {version}, this side speaks {VERSION}")
        if kind not in _KINDS:
            raise WireError(f"unknown frame kind {kind}")
        if meta_len + data_len > self._max:
            raise WireError(f"frame of {meta_len + data_len} bytes is over the limit {self._max}")
        return kind, id, meta_len, data_len

    def _start_large(self, kind: int, id: int, meta_len: int, total: int, start: int) -> None:
        have = self._end - start
        self._body = bytearray(total)
        self._body[:have] = self._view[start : self._end]
        self._large, self._filled, self._end = (kind, id, meta_len), have, 0


# ---------------------------------------------------------------------------------------- tensors


class Datatype(NamedTuple):
    """An Open Inference Protocol datatype; `code` is its `struct` format, '' if it has none."""

    name: str
    size: int
    code: str
    numpy: str


DATATYPES: dict[str, Datatype] = {
    d.name: d
    for d in (
        Datatype("BOOL", 1, "?", "bool"),
        Datatype("UINT8", 1, "B", "uint8"),
        Datatype("UINT16", 2, "H", "uint16"),
        Datatype("UINT32", 4, "I", "uint32"),
        Datatype("UINT64", 8, "Q", "uint64"),
        Datatype("INT8", 1, "b", "int8"),
        Datatype("INT16", 2, "h", "int16"),
        Datatype("INT32", 4, "i", "int32"),
        Datatype("INT64", 8, "q", "int64"),
        Datatype("FP16", 2, "e", "float16"),
        Datatype("FP32", 4, "f", "float32"),
        Datatype("FP64", 8, "d", "float64"),
        Datatype("BF16", 2, "", ""),
        # u32 length and payload for each element; size 0 here: it varies.
        Datatype("BYTES", 0, "", "object"),
    )
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named input or output. `shape` leaves out the batch dimension; -1 is variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    # Class names of an output, for the `classification` parameter; empty where there are none.
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.datatype not in DATATYPES:
            known = ", ".join(DATATYPES)
            raise ValueError(f"{self.name}: datatype {self.datatype!r} is not one of {known}")
        if any(dim < -1 for dim in self.shape):
            raise ValueError(f"{self.name}: shape {self.shape} has a dimension below -1")

    def to_json(self) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "name": self.name,
            "datatype": self.datatype,
            "shape": list(self.shape),
        }
        if self.labels:
            spec["labels"] = list(self.labels)
        return spec

    @classmethod
    def from_json(cls, spec: dict[str, Any]) -> TensorSpec:
        labels = tuple(spec.get("labels", ()))
        return cls(spec["name"], spec["datatype"], tuple(spec["shape"]), labels)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a tensor model takes and gives; every tensor has the batch as its first dimension.

    `ragged` says how requests whose variable dimensions differ may share a batch: "refuse" (equal
    shapes only), "pad" (zero-padded to the longest in the batch; the model gets `<input>_lengths`,
    an INT32 [batch], for every padded input), or "concat" (joined along the first variable
    dimension; the model gets `<input>_lengths` likewise).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 64
    ragged: str = "refuse"

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size is {self.max_batch_size}; it must be at least 1")
        if self.ragged not in ("refuse", "pad", "concat"):
            raise ValueError(f"ragged is {self.ragged!r}; expected refuse, pad or concat")

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
            "max_batch_size": self.max_batch_size,
            "ragged": self.ragged,
        }

    @classmethod
    def from_json(cls, signature: dict[str, Any]) -> Signature:
        return cls(
            tuple(TensorSpec.from_json(spec) for spec in signature["inputs"]),
            tuple(TensorSpec.from_json(spec) for spec in signature["outputs"]),
            signature["max_batch_size"],
            signature["ragged"],
        )


# --------------------------------------------------------------------------------------- messages

# A gathered tensor in EXECUTE or RESULT: (name, datatype, shape with the batch dimension first).
# Its bytes follow in the frame's data in this order: little-endian, row-major, BYTES as in OIP.
TensorHead = tuple[str, str, Sequence[int]]


def execute_meta(
    inputs: Sequence[TensorHead],
    rows: Sequence[int],
    *,
    sizes: Sequence[int],
    version: str | None = None,
    deadlines_ms: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """EXECUTE: `rows[i]` rows of every input belong to request i; `sizes` are bytes per input.

    `version` pins a version (None: what the replica serves now); `deadlines_ms` is the time left
    to each request when the frame was made.
    """
    meta: dict[str, Any] = {"inputs": inputs, "rows": rows, "sizes": sizes}
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
) -> dict[str, Any]:
    """RESULT: `rows[i]` rows of every output belong to request i; 0 rows where it failed.

    `errors` maps the request's index (as a string) to a `Fault.to_json()`. `batch` is how many rows
    the device executed together, which may be more than this frame's: a replica joins the frames
    of several gateways. `version` answers for every row of the frame.
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
    return meta


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """CALL's meta. `surface` names the form of the body and of the reply: chat, completions,
    responses, embeddings, generate, generate_stream or ws. The replica renders the reply's bytes
    (SSE events included); the gateway relays them."""

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
    piece carries info {"usage": {"prompt_tokens", "completion_tokens", "cached_tokens"}, …}.
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
    (idle, admit, load, verify, ready, swap, probation) and `reload_to` the version it loads.
    `slots`: batches that the replica takes at a time. `load`: numbers for routing (an LLM's waiting
    and running sequences, free pages, tokens per second).
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
    slots: int = 1
    pid: int = 0
    signature: dict[str, Any] | None = None
    load: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, meta: dict[str, Any]) -> Status:
        return cls(**{**meta, "versions": tuple(meta.get("versions", ()))})
