"""Runs pieces on a model, so that each request ends with its own outputs or its own fault.

Owns the isolation of a bad item: a batch that raises, or breaks the signature, is run once more
request by request. It never decides what runs: the worker does. Invariant: no exception of the
model's leaves `run`, and a request's rows are never executed on inputs that the model had changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from backends.errors import BackendError, ModelFailed
from backends.model import ServedModel
from backends.tensor.job import Job, Piece, requests_of
from backends.tensor.joining import Value, join, on_device
from backends.tensor.reply import Share
from backends.tensor.splitting import nothing, split
from backends.wire import Fault, Signature


class Ran(NamedTuple):
    """What became of each job's requests, and how many rows were executed together."""

    shares: dict[Job, list[Share]]
    faults: dict[Job, dict[int, Fault]]
    rows: int


class Runner:
    """`on_error(error, rows)` hears of each batch that failed as a whole."""

    def __init__(
        self, device: torch.device, on_error: Callable[[BaseException, int], None]
    ) -> None:
        self._device, self._on_error = device, on_error

    def on_host(self) -> Runner:
        """For a model that is in the host's memory."""
        return Runner(torch.device("cpu"), self._on_error)

    def run(self, model: ServedModel, signature: Signature, pieces: Sequence[Piece]) -> Ran:
        ran = Ran({}, {}, sum([piece.rows for piece in pieces]))
        for group in _groups(pieces):
            try:
                self._together(model, signature, group, ran)
            except BaseException as error:  # a model may even raise SystemExit
                self._on_error(error, sum(piece.rows for piece in group))
                self._one_by_one(model, signature, group, ran, error)
        return ran

    def attempt(
        self, model: ServedModel, signature: Signature, pieces: Sequence[Piece]
    ) -> tuple[Mapping[str, Any], list[list[Share]]]:
        """One batch of pieces whose keys are equal: what the model returned, and the shares.

        Raises what the model raises, and SignatureBreach.
        """
        inputs = on_device(join(signature, pieces), self._device)
        try:
            with torch.inference_mode():
                outputs = model.infer(**inputs)
                return outputs, split(signature, outputs, pieces)
        except BaseException as error:
            if self._device.type == "cpu" and _changed(inputs, pieces):
                raise Spoilt(error) from error
            raise

    def _together(
        self, model: ServedModel, signature: Signature, pieces: Sequence[Piece], ran: Ran
    ) -> None:
        if any([piece.rows for piece in pieces]):
            _, shares = self.attempt(model, signature, pieces)
        else:
            shares = [nothing(signature, piece) for piece in pieces]
        for piece, own in zip(pieces, shares, strict=True):
            ran.shares.setdefault(piece.job, []).extend(own)

    def _one_by_one(
        self,
        model: ServedModel,
        signature: Signature,
        group: Sequence[Piece],
        ran: Ran,
        error: BaseException,
    ) -> None:
        requests = [request for piece in group for request in requests_of(piece)]
        again = len(requests) > 1 and not isinstance(error, Spoilt)
        for request in requests:
            found: BaseException | None = error
            if again:
                try:
                    self._together(model, signature, [request], ran)
                    found = None
                except BaseException as alone:
                    found = alone
            if found is not None:
                ran.faults.setdefault(request.job, {})[request.first] = _fault(found)


class Spoilt(Exception):
    """The model raised after it had changed its inputs in place, where they lie in the frame."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{error} (and it had changed its input in place)")


def _changed(inputs: Mapping[str, Value], pieces: Sequence[Piece]) -> bool:
    """Whether bytes of a frame were written to: a lone piece's may be, where they are borrowed."""
    borrowed = len(pieces) == 1 and any(
        isinstance(part, memoryview) and not part.readonly for part in pieces[0].parts
    )
    return borrowed and any(
        isinstance(value, torch.Tensor) and value._version > 0 for value in inputs.values()
    )


def _fault(error: BaseException) -> Fault:
    if isinstance(error, Spoilt) and error.__cause__ is not None:
        return ModelFailed(f"{type(error.__cause__).__name__}: {error}").fault()
    if isinstance(error, BackendError):
        return error.fault()
    return ModelFailed.raised(error).fault()


def _groups(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that fit into one batch: those with equal keys."""
    first = pieces[0].key if pieces else None
    if all([piece.key == first for piece in pieces]):
        return [list(pieces)] if pieces else []
    groups: dict[Hashable, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.key, []).append(piece)
    return list(groups.values())
