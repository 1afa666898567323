"""Stand-ins for the two sides of the surface: an exchange without a socket, a model without a
replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from backends.wire import Signature, TensorSpec
from gateway.errors import GatewayError, ModelNotFound
from gateway.oip import ModelStats
from gateway.request import Answer, Tensor, TensorRequest

DTYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
)  # fmt: skip

SIMPLE = Signature(
    (TensorSpec("x", "FP32", (3,)),),
    (TensorSpec("y", "FP32", (3,), labels=("cat", "dog", "eel")), TensorSpec("n", "INT64", ())),
    max_batch_size=8,
)


def echo_signature(
    *specs: TensorSpec, max_batch_size: int = 8, ragged: str = "refuse"
) -> Signature:
    """A model whose outputs are its inputs, with `out_` before their names."""
    outputs = tuple(TensorSpec(f"out_{s.name}", s.datatype, s.shape) for s in specs)
    return Signature(specs, outputs, max_batch_size, ragged)


class FakeExchange:
    """As the lane's, for one request; keeps what was answered."""

    def __init__(
        self,
        method: str = "POST",
        path: str = "/",
        body: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        arrived: float = 100.0,
    ) -> None:
        self.method, self.path, self.query, self.body = method, path, "", body
        self.headers, self.arrived = list(headers), arrived
        self.tenant = None
        self.on_gone: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.status = 0
        self.content_type = b""
        self.fields: dict[str, str] = {}
        self.answers = 0
        self.on_answer: Callable[[], None] = lambda: None

    def respond(
        self,
        status: int,
        body: Any = b"",
        content_type: bytes = b"application/json",
        fields: bytes = b"",
    ) -> None:
        self.answers += 1
        self.status, self.content_type = status, content_type
        self.reply = bytes(body) if isinstance(body, bytes | memoryview) else b"".join(body)
        lines = fields.decode("latin-1").split("\r\n")
        assert lines.pop() == ""
        self.fields = dict(line.split(": ", 1) for line in lines)
        assert len(self.fields) == len(lines)
        self.on_answer()

    def json(self) -> Any:
        return orjson.loads(self.reply)

    @property
    def error(self) -> str:
        assert self.content_type == b"application/json"
        assert "content-encoding" not in self.fields
        return self.json()["error"]


class FakeModel:
    """Answers at once with what `run` makes of a request; with `held`, when a test says so."""

    def __init__(
        self,
        name: str = "simple",
        signature: Signature | None = SIMPLE,
        run: Callable[[TensorRequest], Answer | GatewayError] | None = None,
    ) -> None:
        self.name, self.kind, self.signature = name, "tensor", signature
        self.max_batch_size = None if signature is None else signature.max_batch_size
        self.versions: tuple[str, ...] = ("3-abc", "2-def")
        self.ready = signature is not None
        self.stats = ModelStats()
        self.run = run or simple_answer
        self.held = False
        self.submitted: list[TensorRequest] = []

    def reason(self) -> str:
        return f"no replica of model {self.name!r} is ready"

    def submit(self, request: TensorRequest) -> None:
        self.submitted.append(request)
        if not self.held:
            self.release(request)

    def release(self, request: TensorRequest) -> None:
        outcome = self.run(request)
        if isinstance(outcome, Answer):
            self.stats.executed(outcome.version, request.rows, outcome.compute_us, 1.7e9)
            self.stats.succeeded(outcome, request.rows, 0.001)
        else:
            self.stats.failed(self.versions[0], 0.001)
        request.finish(outcome)


class FakeGenerative(FakeModel):
    """Takes calls and no tensors."""

    surfaces = frozenset({"chat", "generate", "generate_stream"})

    def __init__(self, name: str = "m") -> None:
        super().__init__(name, None)
        self.kind, self.ready = "llm", True


class FakeSwitchable(FakeModel):
    unloaded = False
    failing: GatewayError | None = None

    def load(self, done: Callable[[GatewayError | None], None]) -> None:
        if self.failing is None:
            self.unloaded, self.ready = False, True
        done(self.failing)

    def unload(self, done: Callable[[GatewayError | None], None]) -> None:
        self.unloaded, self.ready = True, False
        done(None)


class FakeDirectory:
    def __init__(self, *models: FakeModel) -> None:
        self.by_name = {model.name: model for model in models}

    def model(self, name: str) -> FakeModel:
        if name not in self.by_name:
            raise ModelNotFound(f"there is no model {name!r}")
        return self.by_name[name]

    def models(self) -> list[FakeModel]:
        return list(self.by_name.values())


def answered(request: TensorRequest, *outputs: Tensor) -> Answer:
    return Answer(outputs, request.version or "3-abc", "replica-0", 1500, 2500, request.rows)


def simple_answer(request: TensorRequest) -> Answer:
    """y = x; n counts the rows from 0."""
    rows = request.rows
    counted = b"".join(n.to_bytes(8, "little") for n in range(rows))
    y = Tensor("y", "FP32", (rows, 3), memoryview(bytes(request.inputs[0].data)))
    return answered(request, y, Tensor("n", "INT64", (rows,), memoryview(counted)))


def echo_answer(request: TensorRequest) -> Answer:
    outputs = [
        Tensor(f"out_{t.name}", t.datatype, t.shape, memoryview(t.data)) for t in request.inputs
    ]
    return answered(request, *outputs)
