"""Models, frames, a gateway and published runs for the tests of replicas.

The models here are also what replica processes under test serve, by "tests.backends.fakes:Class".
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import torch
from torch import Tensor, nn

from backends import wire
from backends.checkpoint import Manifest, Probe, Run, Staging, commit
from backends.tensor.codec import OIP, TORCH, bytes_of, pack_elements
from backends.wire import Buffer, Frame, Kind, Signature, Status, TensorSpec, execute_meta

FP32_1 = (TensorSpec("x", "FP32", (1,)),)
OUT_1 = (TensorSpec("y", "FP32", (1,)),)

# ------------------------------------------------------------------------------------------ models


class Scale(nn.Module):
    """y = x · factor. Values of x below 0 are bad items: it raises on them if `picky`."""

    signature = Signature(FP32_1, OUT_1, max_batch_size=8)

    def __init__(self, factor: float = 2.0, picky: bool = False) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))
        self.picky = picky

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        if self.picky and bool((x < 0).any()):
            raise ValueError(f"{x.min().item():g} is below 0")
        return {"y": x * self.factor}


class Wider(Scale):
    """Another signature than Scale: an output more."""

    signature = Signature(FP32_1, (*OUT_1, TensorSpec("z", "INT64", (1,))), max_batch_size=4)

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"y": x * self.factor, "z": x.long()}


class Gate(Scale):
    """Waits at `Gate.open` for each batch, and counts what went in."""

    open = threading.Event()
    entered = threading.Event()
    batches: list[int] = []  # noqa: RUF012 - shared by all, as the events are

    @classmethod
    def reset(cls) -> None:
        cls.open, cls.entered, cls.batches = threading.Event(), threading.Event(), []

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        if threading.current_thread().name == "device":
            Gate.batches.append(len(x))
            Gate.entered.set()
            assert Gate.open.wait(30)
        return super().infer(x)


class LateInit(Gate):
    """Is not there before the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        assert Gate.open.wait(30)


class Breach(nn.Module):
    """Breaks its signature as `how` says, once it is past the warm-up."""

    signature = Signature(FP32_1, OUT_1, max_batch_size=8)

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def infer(self, x: Tensor) -> Any:
        if not bool(x.any()):
            return {"y": x}
        return {
            "name": {"z": x},
            "extra": {"y": x, "z": x},
            "dtype": {"y": x.double()},
            "shape": {"y": x.repeat(1, 2)},
            "batch": {"y": x[:-1]},
            "kind": {"y": [1.0]},
            "none": None,
            "exit": None,
            "nan": {"y": x * torch.nan},
        }[self.how]


class Exits(Scale):
    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        if bool((x > 100).any()):
            raise SystemExit(3)
        return super().infer(x)


class Words:
    """BYTES in and out, not a torch module: upper case, and how many characters."""

    signature = Signature(
        (TensorSpec("text", "BYTES", (2,)),),
        (TensorSpec("upper", "BYTES", (2,)), TensorSpec("size", "INT32", (2,))),
        max_batch_size=64,
    )

    def infer(self, text: list[list[bytes]]) -> Mapping[str, Any]:
        return {
            "upper": [[word.upper() for word in row] for row in text],
            "size": torch.tensor([[len(word) for word in row] for row in text], dtype=torch.int32),
        }


def doubled(x: Tensor) -> Tensor:
    # By way of a type that can be added: torch adds no UINT16, and False + False is no number.
    return (x.double() * 2).to(x.dtype)


class RaggedSum:
    """The sum of each row, and the row doubled; for any way of joining."""

    def __init__(self, ragged: str, datatype: str = "FP32", front: int = 0) -> None:
        # `front` dimensions of 2 stand before the variable one.
        shape = (*(2,) * front, -1)
        self.signature = Signature(
            (TensorSpec("x", datatype, shape),),
            (TensorSpec("sum", "FP64", (1,)), TensorSpec("twice", datatype, shape)),
            max_batch_size=64,
            ragged=ragged,
        )
        self.seen: list[tuple[int, ...]] = []

    def infer(self, x: Tensor, x_lengths: Tensor | None = None) -> Mapping[str, Tensor]:
        self.seen.append(tuple(x.shape))
        outputs = {"twice": doubled(x)}
        if self.signature.ragged == "concat":
            assert x_lengths is not None
            parts = x.double().split(x_lengths.tolist(), dim=-1)
            sums = torch.stack([part.sum() for part in parts]) if parts else torch.zeros(0)
            outputs["sum"] = sums.double().reshape(-1, 1)
        else:
            outputs["sum"] = x.double().flatten(1).sum(1, keepdim=True)
        if x_lengths is not None:
            outputs["twice_lengths"] = x_lengths
        return outputs


class NeedsExample(Scale):
    """Cannot be warmed up with zeros."""

    def example(self) -> Mapping[str, Tensor]:
        return {"x": torch.ones(1, 1)}

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        assert bool(x.all()), "zero is nothing I can take"
        return super().infer(x)


class Slow(Scale):
    """Takes `seconds` for a batch on the device thread."""

    def __init__(self, factor: float = 2.0, seconds: float = 0.0) -> None:
        super().__init__(factor)
        self.seconds = seconds

    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        time.sleep(self.seconds)
        return super().infer(x)


class BadInit:
    def __init__(self) -> None:
        raise RuntimeError("no weights today")


class Quits:
    def __init__(self) -> None:
        raise SystemExit(3)


class BadWarmUp(Scale):
    def infer(self, x: Tensor) -> Mapping[str, Tensor]:
        raise RuntimeError("I do not run")


class NoSignature(nn.Module):
    pass


# ------------------------------------------------------------------------------------------ frames

Inputs = Mapping[str, "Tensor | list[list[bytes]]"]


def pack(signature: Signature, requests: Sequence[Inputs], **options: Any) -> tuple[Any, bytes]:
    """EXECUTE's meta and data for requests, as a gateway gathers them."""
    rows = [len(next(iter(request.values()))) for request in requests]
    heads, sizes, data = [], [], []
    shapes: dict[str, list[list[int]]] = {}
    for spec in signature.inputs:
        values = [request[spec.name] for request in requests]
        own = [_shape(value) for value in values]
        if any(shape[1:] != own[0][1:] for shape in own):
            shapes[spec.name] = own
        tail = own[0][1:] if spec.name not in shapes else list(spec.shape)
        parts = [_bytes(value) for value in values]
        heads.append((spec.name, spec.datatype, [sum(rows), *tail]))
        sizes.append(sum(map(len, parts)))
        data += parts
    return execute_meta(heads, rows, sizes=sizes, shapes=shapes, **options), b"".join(data)


def execute_frame(signature: Signature, requests: Sequence[Inputs], **options: Any) -> Frame:
    meta, data = pack(signature, requests, **options)
    return Frame(Kind.EXECUTE, 1, orjson.dumps(meta), memoryview(data))


def _shape(value: Tensor | list[list[bytes]]) -> list[int]:
    return list(value.shape) if isinstance(value, Tensor) else [len(value), len(value[0])]


def _bytes(value: Tensor | list[list[bytes]]) -> bytes:
    if isinstance(value, Tensor):
        return bytes(bytes_of(value.contiguous()))
    return pack_elements(one for row in value for one in row)


def unpack(frame: Frame) -> list[dict[str, Any] | wire.Fault]:
    """Each request's outputs (tensors; BYTES as a flat list), or its fault."""
    assert frame.kind == Kind.RESULT, frame.json()
    meta = frame.json()
    answers: list[dict[str, Any] | wire.Fault] = [{} for _ in meta["rows"]]
    at = 0
    for (name, datatype, shape), size in zip(meta["outputs"], meta["sizes"], strict=True):
        data = frame.data[at : at + size]
        at += size
        own = meta.get("shapes", {}).get(name) or [[rows, *shape[1:]] for rows in meta["rows"]]
        for answer, dims in zip(answers, own, strict=True):
            assert isinstance(answer, dict)
            answer[name], data = _take(data, datatype, dims)
        assert not len(data), "bytes are left"
    assert at == len(frame.data)
    for index, fault in (meta.get("errors") or {}).items():
        assert meta["rows"][int(index)] == 0
        answers[int(index)] = wire.Fault.from_json(fault)
    return answers


def _take(data: memoryview, datatype: str, dims: Sequence[int]) -> tuple[Any, memoryview]:
    count = 1
    for dim in dims:
        count *= dim
    if datatype == "BYTES":
        found = []
        for _ in range(count):
            size = int.from_bytes(data[:4], "little")
            found.append(bytes(data[4 : 4 + size]))
            data = data[4 + size :]
        return found, data
    dtype = TORCH[datatype]
    size = count * dtype.itemsize
    if not count:
        return torch.empty(dims, dtype=dtype), data
    return torch.frombuffer(bytearray(data[:size]), dtype=dtype).view(dims), data[size:]


def x(*values: float) -> dict[str, Tensor]:
    """One request for Scale and its like."""
    return {"x": torch.tensor(values, dtype=torch.float32).reshape(-1, 1)}


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    return TensorSpec(name, OIP[tensor.dtype], tuple(tensor.shape[1:]))


# ----------------------------------------------------------------------------------------- gateway


class Gateway(asyncio.Protocol):
    """One connection to a replica; keeps every frame that comes."""

    def __init__(self) -> None:
        self._decoder = wire.Decoder()
        self._changed = asyncio.Event()
        self.statuses: list[Status] = []
        self.frames: list[Frame] = []
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport
        self._next = 1

    @classmethod
    async def connect(cls, address: str, *, hello: bool = True) -> Gateway:
        loop = asyncio.get_running_loop()
        scheme, _, rest = address.partition(":")
        if scheme == "unix":
            _, gateway = await loop.create_unix_connection(cls, rest)
        else:
            host, _, port = rest.rpartition(":")
            _, gateway = await loop.create_connection(cls, host, int(port))
        if hello:
            gateway.send(Kind.HELLO, {"gateway": "test", "protocol": wire.VERSION}, id=0)
            await gateway.until(lambda: bool(gateway.statuses))
        return gateway

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.kind == Kind.STATUS:
                self.statuses.append(Status.from_json(frame.json()))
            else:
                self.frames.append(frame)
        self._changed.set()

    def send(
        self, kind: Kind, meta: Any = None, data: Sequence[Buffer] = (), id: int | None = None
    ) -> int:
        if id is None:
            id, self._next = self._next, self._next + 1
        self.transport.write(b"".join(wire.encode(kind, id, meta, data)))
        return id

    def execute(self, signature: Signature, requests: Sequence[Inputs], **options: Any) -> int:
        meta, data = pack(signature, requests, **options)
        return self.send(Kind.EXECUTE, meta, [data])

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                assert not self.closed.is_set(), "the replica closed the connection"
                self._changed.clear()
                await self._changed.wait()

    async def answer(self, id: int) -> Frame:
        """The terminal answer to `id`; checks that there is only one."""
        await self.until(lambda: any(frame.id == id for frame in self.frames))
        (frame,) = (frame for frame in self.frames if frame.id == id)
        return frame

    async def fault(self, id: int) -> wire.Fault:
        frame = await self.answer(id)
        assert frame.kind == Kind.ERROR, frame.json()
        return wire.Fault.from_json(frame.json())

    async def ask(self, signature: Signature, *requests: Inputs, **options: Any) -> Any:
        """Outputs or faults of a frame of requests, and the version that answered."""
        frame = await self.answer(self.execute(signature, requests, **options))
        return unpack(frame), frame.json()["version"]

    async def control(self, op: str, **arguments: Any) -> Frame:
        return await self.answer(self.send(Kind.CONTROL, {"op": op, **arguments}))

    async def state(self, wanted: str) -> Status:
        await self.until(lambda: self.statuses[-1].state == wanted)
        return self.statuses[-1]

    async def serves(self, version: str) -> Status:
        await self.until(lambda: self.statuses[-1].version == version)
        return self.statuses[-1]

    async def close(self) -> None:
        self.transport.abort()
        await self.closed.wait()


async def eventually(condition: Callable[[], bool]) -> None:
    """For what tells nobody that it changed."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class BlockingGateway:
    """The same without an event loop, for tests of processes."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self._decoder = wire.Decoder()
        self._pending: list[Frame] = []
        self._next = 1
        self._send(Kind.HELLO, 0, {"gateway": "test", "protocol": wire.VERSION})
        self.status = Status.from_json(self._read(lambda f: f.kind == Kind.STATUS).json())

    def _send(self, kind: Kind, id: int, meta: Any, data: Iterable[Buffer] = ()) -> None:
        self._socket.sendall(b"".join(wire.encode(kind, id, meta, list(data))))

    def _read(self, wanted: Callable[[Frame], bool]) -> Frame:
        while True:
            for frame in self._pending:
                if wanted(frame):
                    self._pending.remove(frame)
                    return frame
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the replica closed the connection")
            self._pending += self._decoder.feed(data)

    def until(self, condition: Callable[[Status], bool]) -> Status:
        while not condition(self.status):
            frame = self._read(lambda frame: frame.kind == Kind.STATUS)
            self.status = Status.from_json(frame.json())
        return self.status

    def ask(self, signature: Signature, *requests: Inputs, **options: Any) -> Any:
        frame = self.answer(self.execute(signature, *requests, **options))
        return unpack(frame), frame.json()["version"]

    def execute(self, signature: Signature, *requests: Inputs, **options: Any) -> int:
        meta, data = pack(signature, requests, **options)
        id, self._next = self._next, self._next + 1
        self._send(Kind.EXECUTE, id, meta, [data])
        return id

    def answer(self, id: int) -> Frame:
        return self._read(lambda frame: frame.id == id and frame.kind != Kind.STATUS)

    def control(self, op: str) -> Frame:
        id, self._next = self._next, self._next + 1
        self._send(Kind.CONTROL, id, {"op": op})
        return self.answer(id)

    def close(self) -> None:
        self._socket.close()


# -------------------------------------------------------------------------------------------- runs


def commit_model(
    run: Run,
    step: int,
    model: nn.Module,
    *,
    probe: Probe | None = None,
    path: str = "",
    **config: Any,
) -> Manifest:
    """A committed step with this model's weights; `path` names another class than its own."""
    staging = Staging(run, step, 0, 0)
    staging.create()
    tensors = dict(model.state_dict())
    part = staging.write_shard(0, 1, tensors)
    kind = type(model)
    return commit(
        staging,
        [part],
        model={"class": path or f"{kind.__module__}:{kind.__name__}", "config": config},
        expected={name: (tuple(t.shape), t.dtype) for name, t in tensors.items()},
        position=step,
        probe=probe,
    )


def flip_a_byte(folder: Path) -> None:
    """Silent damage in the last tensor of the model's first shard."""
    path = sorted(folder.glob("model/*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)
