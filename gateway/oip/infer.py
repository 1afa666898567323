"""One infer call: from an exchange to a model's queue, and its answer back.

Owns what lies between the pure codec and the shells on both sides. No task, no future: the call is
answered from the request's one terminal event. Invariant: every exchange given to it is answered
once, whatever the body, the model or the replica do, unless its client has gone.
"""

from __future__ import annotations

import asyncio
import logging
import os

from backends.wire import Buffer, Signature
from gateway.errors import BadRequest, Cancelled, GatewayError, NoReplica, NotFound, Unsupported
from gateway.lane import Exchange, field
from gateway.oip.codec import Codec
from gateway.oip.directory import Directory, ModelView
from gateway.oip.parse import InferRequest, parse_infer
from gateway.oip.render import render_infer
from gateway.oip.reply import MAX_INLINE, MIN_COMPRESSED, compress, refuse
from gateway.oip.terms import PLAIN, Terms, read_terms
from gateway.oip.versions import find
from gateway.request import Answer, TensorRequest

log = logging.getLogger(__name__)

# Entries of the small caches: of models and versions, and of the headers that clients repeat.
MAX_CACHED = 1024
MAX_TERMS = 256


class InferDesk:
    """Every infer call of a surface. Names the requests that come without an id."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._codecs: dict[str, Codec] = {}
        # By the identity of the header list, which the lane shares between equal heads; the list
        # is kept, so its identity cannot pass to another.
        self._terms: dict[int, tuple[list[tuple[bytes, bytes]], Terms]] = {}
        self._served: dict[tuple[str, str], bytes] = {}
        self._id = os.urandom(6).hex().encode()
        self._count = 0

    def infer(self, exchange: Exchange, name: str, version: str | None) -> None:
        fields = b""
        request: TensorRequest | None = None
        try:
            terms = self.terms(exchange.headers)
            fields = terms.echo or self._made_id()
            view = self._directory.model(name)
            tenant = exchange.tenant
            if tenant is not None:
                tenant.enter(exchange, name)
            if terms.version is not None:
                version = _agreed(version, terms.version)
            pinned = None if version is None else pin(view, version)
            codec = self._codecs.get(name)
            if codec is None or codec.signature is not view.signature:
                codec = self._compile(view)
            parsed = parse_infer(exchange.body, terms.header_length, codec)
            if parsed.rows > 1:
                check_rows(parsed.rows, view)
            if parsed.model is not None or parsed.version is not None:
                _check_names(parsed, name, version, pinned)
            arrived = exchange.arrived
            deadline = arrived + terms.deadline_s
            if parsed.timeout_us:
                deadline = min(deadline, arrived + parsed.timeout_us / 1e6)
            call = _Call(self, exchange, terms, fields, name, parsed, codec)
            request = TensorRequest(
                parsed.inputs,
                parsed.rows,
                parsed.key,
                call.done,
                arrived=arrived,
                deadline=deadline,
                priority=parsed.priority or terms.priority,
                session=terms.session,
                version=pinned,
            )
            if tenant is not None:
                request.tenant, request.priority = tenant.name, tenant.priority(request.priority)
            exchange.on_gone = request.gone
            view.submit(request)
        except Exception as raised:
            error = translated(raised)
            if request is None:
                refuse(exchange, error, fields)
            else:
                request.finish(error)

    def terms(self, headers: list[tuple[bytes, bytes]]) -> Terms:
        """Raises BadRequest."""
        known = self._terms.get(id(headers))
        if known is not None and known[0] is headers:
            return known[1]
        terms = read_terms(headers)
        if len(self._terms) >= MAX_TERMS:
            self._terms.clear()
        self._terms[id(headers)] = (headers, terms)
        return terms

    def _made_id(self) -> bytes:
        self._count += 1
        return b"x-request-id: %b-%x\r\n" % (self._id, self._count)

    def _compile(self, view: ModelView) -> Codec:
        """On the first call, and when a model's signature has changed."""
        codec = Codec(signature_of(view))
        if len(self._codecs) >= MAX_CACHED:
            self._codecs.clear()
        self._codecs[view.name] = codec
        return codec

    def served(self, answer: Answer) -> bytes:
        """Header lines that say who answered."""
        key = (answer.version, answer.replica)
        known = self._served.get(key)
        if known is None:
            if len(self._served) >= MAX_CACHED:
                self._served.clear()
            known = self._served[key] = field(b"x-model-version", answer.version) + field(
                b"x-served-by", answer.replica
            )
        return known


class _Call:
    """What the answer's way back needs."""

    __slots__ = ("_codec", "_desk", "_exchange", "_fields", "_name", "_parsed", "_terms")

    def __init__(
        self,
        desk: InferDesk,
        exchange: Exchange,
        terms: Terms,
        fields: bytes,
        name: str,
        parsed: InferRequest,
        codec: Codec,
    ) -> None:
        self._desk, self._exchange, self._terms, self._fields = desk, exchange, terms, fields
        self._name, self._parsed, self._codec = name, parsed, codec

    def done(self, outcome: Answer | GatewayError) -> None:
        """The request's terminal event."""
        if type(outcome) is not Answer:
            assert isinstance(outcome, GatewayError)
            if not isinstance(outcome, Cancelled):
                refuse(self._exchange, outcome, self._fields)
            return
        try:
            fields = self._fields + self._desk.served(outcome)
            content_type, own_fields, body = render_infer(
                self._parsed, self._name, outcome, self._codec
            )
        except Exception as raised:
            refuse(self._exchange, translated(raised), self._fields)
            return
        if own_fields:
            fields += own_fields
        terms = self._terms
        if terms is not PLAIN:
            if terms.timing:
                fields += _timing(outcome)
            if terms.coding:
                try:
                    self._compressed(content_type, fields, body)
                except Exception as raised:
                    refuse(self._exchange, translated(raised), self._fields)
                return
        self._exchange.respond(200, body, content_type, fields)

    def _compressed(self, content_type: bytes, fields: bytes, body: bytes | list[Buffer]) -> None:
        pieces: list[Buffer] = [body] if isinstance(body, bytes) else body
        size, coding = sum(map(len, pieces)), self._terms.coding
        if size < MIN_COMPRESSED:
            self._exchange.respond(200, body, content_type, fields)
            return
        fields += field(b"content-encoding", coding)
        if size <= MAX_INLINE:
            self._exchange.respond(200, compress(pieces, coding), content_type, fields)
            return
        later = asyncio.get_running_loop().run_in_executor(None, compress, pieces, coding)
        later.add_done_callback(lambda done: self._packed(done, content_type, fields))

    def _packed(self, done: asyncio.Future[bytes], content_type: bytes, fields: bytes) -> None:
        try:
            self._exchange.respond(200, done.result(), content_type, fields)
        except Exception as raised:
            refuse(self._exchange, translated(raised), self._fields)


def signature_of(view: ModelView) -> Signature:
    """Raises NoReplica where no replica has said it yet, Unsupported where the model has none."""
    signature = view.signature
    if signature is None:
        if view.kind != "tensor":
            raise Unsupported(f"model {view.name!r} takes no tensors; it is of kind {view.kind}")
        raise NoReplica(view.reason())
    return signature


def pin(view: ModelView, version: str) -> str:
    """The full name of a version. Raises NotFound, but not while no replica can say what there
    is: then the model decides."""
    found = find(version, view.versions)
    if found is None and view.ready:
        raise NotFound(
            f"model {view.name!r} has no version {version!r} now; it has {', '.join(view.versions)}"
        )
    return found or version


def _agreed(version: str | None, header: str) -> str:
    if version is not None and version != header:
        raise BadRequest(
            f"header x-model-version is {header!r}, the path names {version!r}; send one of them",
            param="x-model-version",
        )
    return header


def check_rows(rows: int, view: ModelView) -> None:
    """The operator may allow fewer than the model takes."""
    limit = view.max_batch_size
    if limit is not None and rows > limit:
        raise BadRequest(
            f"the request has {rows} rows, the max_batch_size of model {view.name!r} is {limit}",
            param="inputs",
        )


def _check_names(parsed: InferRequest, name: str, version: str | None, pinned: str | None) -> None:
    if parsed.model is not None and parsed.model != name:
        raise BadRequest(
            f"model_name is {parsed.model!r} in the body, the path names {name!r}",
            param="model_name",
        )
    if parsed.version and parsed.version not in (version, pinned):
        raise BadRequest(
            f"model_version is {parsed.version!r} in the body, the path names "
            + ("none" if version is None else repr(version)),
            param="model_version",
        )


def _timing(answer: Answer) -> bytes:
    """Milliseconds, as the Server-Timing header has them."""
    return b'server-timing: queue;dur=%.3f, compute;dur=%.3f, batch;desc="%d"\r\n' % (
        answer.queue_us / 1e3,
        answer.compute_us / 1e3,
        answer.batch,
    )


def translated(raised: Exception) -> GatewayError:
    if isinstance(raised, GatewayError):
        return raised.detached()
    log.error("an infer call failed inside the gateway", exc_info=raised)
    return GatewayError("the gateway failed on this request")


class InferHandler:
    """The handler of one model's (and version's) infer path."""

    __slots__ = ("_desk", "_name", "_version")
    streams = False

    def __init__(self, desk: InferDesk, name: str, version: str | None) -> None:
        self._desk, self._name, self._version = desk, name, version

    def __call__(self, exchange: Exchange) -> None:
        self._desk.infer(exchange, self._name, self._version)
