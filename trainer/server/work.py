"""A contribution: what a worker computes from the weights that it was given and a ticket.

Owns that computation and nothing that outlives it: the inner optimizer starts anew with every
ticket. Invariant: a contribution is a pure function of (weights, ticket, configuration), so it does
not matter who computes it, or how often.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.build import Session
from trainer.data import Split, pieces
from trainer.mesh import Mesh, MeshPlan
from trainer.optim import Optimizer
from trainer.order import SampleOrder
from trainer.parallel import parallelise
from trainer.schedule import factor
from trainer.seeds import derive, seed_torch
from trainer.server.layout import Layout
from trainer.server.rules import trained
from trainer.server.tickets import Ticket
from trainer.state import weights
from trainer.sync.accumulate import DTYPES


@dataclass(frozen=True, slots=True)
class Contribution:
    """The packed gradient or delta, with the buffers; the mean loss and metrics of its samples."""

    packed: Tensor
    metrics: Mapping[str, float]
    seconds: float


class Workplace:
    """A model and the data on one device, and how tensors travel to and from it."""

    def __init__(self, session: Session, device: torch.device) -> None:
        self._config, self._data = session.loaded.config, session.data
        self._device = device
        plan = MeshPlan.of(self._config.parallel, 1)
        mesh = Mesh(plan, device, None, None, 0)
        compute, parallel = self._config.compute, self._config.parallel
        self.parallel = parallelise(session.definition, mesh, parallel, compute, 1)
        self.model = self.parallel.model
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach() for name, tensor in weights(self.model).stored.items()
        }
        self.parameters = trained(self.model)
        self.buffers = {
            name: tensor
            for name, tensor in weights(self.model).stored.items()
            if not isinstance(tensor, torch.nn.Parameter)
        }
        # What is frozen is the same wherever the model is built.
        sent = {n: t for n, t in self.tensors.items() if n in self.parameters or n in self.buffers}
        self.weights = Layout(sent)
        dtype = DTYPES[self._config.sync.dtype]
        self.sent = Layout(sent, frozenset(self.parameters), dtype)
        self._order = SampleOrder(len(self._data.train), self._config.seed)

    def load(self, packed: Tensor) -> None:
        for name, view in self.weights.views(packed):
            self.tensors[name].copy_(view)

    def rate(self, step: int) -> float:
        return self._config.optimizer.lr * factor(self._config.schedule, step, self._config.steps)

    def contribute(self, ticket: Ticket) -> Contribution:
        """From the weights that are loaded, which it leaves changed."""
        began = time.monotonic()
        self.parallel.objective.train()
        if self._config.sync.carries == "gradients":
            metrics = self._gradients(ticket, 0)
            found = {n: _gradient(p) for n, p in self.parameters.items()}
        else:
            before = {n: p.detach().clone() for n, p in self.parameters.items()}
            metrics = self._train(ticket)
            found = {n: before[n] - p.detach() for n, p in self.parameters.items()}
        for parameter in self.parameters.values():
            parameter.grad = None
        packed = self.sent.pack(found | self.buffers)
        return Contribution(packed, metrics, time.monotonic() - began)

    def _train(self, ticket: Ticket) -> dict[str, float]:
        sums: dict[str, float] = {}
        optimizer = Optimizer(dict(self.parameters), self._config.optimizer)
        clip = self._config.optimizer.clip
        for index in range(ticket.steps):
            for name, value in self._gradients(ticket, index).items():
                sums[name] = sums.get(name, 0.0) + value / ticket.steps
            norm = optimizer.take_gradients().sqrt()
            if clip is not None and float(norm) > clip:
                optimizer.scale_gradients((clip / (norm + 1e-6)).clamp(max=1.0))
            optimizer.step(index + 1, self.rate(ticket.first_step + index))
        return sums

    def _gradients(self, ticket: Ticket, index: int) -> dict[str, float]:
        """Of local step `index`, into the parameters; the mean loss and metrics."""
        start = ticket.position + index * ticket.samples
        indices = self._order.slice(start, ticket.samples)
        split = Split.of(ticket.samples, 1, self._config.data.micro_batch)
        # Which part of its step this is: what a rank draws from there, this ticket draws.
        part = start % self._config.data.batch_size // ticket.samples
        step, seed = ticket.first_step + index, self._config.seed

        def prepare(number: int) -> None:
            seed_torch(derive(seed, "step", step, number, part), self._device)

        taken = pieces(self._data.train, indices, split, 0, self._device)
        totals = self.parallel.passes.train(taken, prepare)
        return {name: float(value) for name, value in totals.values.items()}


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
