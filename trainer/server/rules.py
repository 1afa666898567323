"""What the server does with a contribution: the same for a live run and for its replay.

Owns the order of adding. Rounds are applied whole, their parts in order, so who was faster does not
show; only deltas under staleness are applied one by one, and there the momentum waits for a round's
worth of them (delayed Nesterov, Liu et al., 2024). Invariant: the weights are a function of the
contributions in their order of application, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig
from trainer.optim import Optimizer
from trainer.server.tickets import Ticket
from trainer.server.trail import Trail
from trainer.sync.outer import Nesterov

Tensors = Mapping[str, Tensor]
Rate = Callable[[int], float]


class Rule(Protocol):
    """`parts`: contributions that are applied together; `state`: what a checkpoint needs."""

    parts: int
    state: dict[str, Tensor]

    def apply(self, ticket: Ticket, parts: list[Tensors]) -> float:
        """Changes the parameters; returns the norm of what was applied."""


class Descent:
    """Gradients: their mean is clipped and given to the run's own optimizer, as on one rank."""

    def __init__(
        self, parts: int, optimizer: Optimizer, config: OptimizerConfig, rate: Rate
    ) -> None:
        self.parts, self.state = parts, dict[str, Tensor]()
        self._optimizer, self._clip, self._rate = optimizer, config.clip, rate

    def apply(self, ticket: Ticket, parts: list[Tensors]) -> float:
        for name, parameter in self._optimizer.parameters.items():
            parameter.grad = _mean(parts, name).to(parameter.device)
        norm = self._optimizer.take_gradients().sqrt()
        if self._clip is not None and float(norm) > self._clip:
            self._optimizer.scale_gradients((self._clip / (norm + 1e-6)).clamp(max=1.0))
        self._optimizer.step(ticket.first_step, self._rate(ticket.first_step))
        return float(norm)


class Together:
    """Deltas of a whole round: one Nesterov step with their mean."""

    def __init__(self, parts: int, parameters: Mapping[str, Tensor], lr: float, b: float) -> None:
        self.parts, self._parameters = parts, parameters
        self._outer = Nesterov(parameters, lr, b)
        self.state = {f"sync.momentum.{name}": t for name, t in self._outer.momentum.items()}

    def apply(self, ticket: Ticket, parts: list[Tensors]) -> float:
        squares = 0.0
        for name in self._parameters:
            mean = _mean(parts, name)
            squares += float(mean.double().square().sum())
            self._outer.step(name, mean.to(self._parameters[name].device))
        return math.sqrt(squares)


class OneByOne:
    """Deltas as they come, each by its share of a round; the momentum moves once a round."""

    def __init__(self, parts: int, parameters: Mapping[str, Tensor], lr: float, b: float) -> None:
        self.parts = 1
        self._share, self._lr, self._factor = 1 / parts, lr, b
        self._of, self._parameters = parts, parameters
        self._momentum = {n: torch.zeros_like(t) for n, t in parameters.items()} if b else {}
        self._waiting = {n: torch.zeros_like(t) for n, t in parameters.items()} if b else {}
        self._count = torch.zeros((), dtype=torch.int64)
        self.state = {f"sync.momentum.{n}": t for n, t in self._momentum.items()}
        self.state |= {f"sync.waiting.{n}": t for n, t in self._waiting.items()}
        self.state["sync.count"] = self._count

    def apply(self, ticket: Ticket, parts: list[Tensors]) -> float:
        (delta,), squares = parts, 0.0
        self._count += 1
        moves = int(self._count) % self._of == 0
        for name, parameter in self._parameters.items():
            share = delta[name].to(parameter) * self._share
            squares += float(share.double().square().sum())
            parameter.sub_(share, alpha=self._lr)
            if not self._factor:
                continue
            self._waiting[name].add_(share)
            if moves:
                moment = self._momentum[name].mul_(self._factor).add_(self._waiting[name])
                parameter.sub_(moment, alpha=self._lr * self._factor)
                self._waiting[name].zero_()
        return math.sqrt(squares)


def _mean(parts: list[Tensors], name: str) -> Tensor:
    total = parts[0][name].float().clone()
    for part in parts[1:]:
        total += part[name].float()
    return total.div_(len(parts))


class Applier:
    """Collects contributions until some can be applied, in the order that the rule wants.

    `version` counts the changes of the parameters.
    """

    def __init__(
        self,
        rule: Rule,
        round_of: Callable[[Ticket], int],
        buffers: Tensors,
        trail: Trail | None = None,
    ) -> None:
        self._rule, self._round_of, self._buffers = rule, round_of, buffers
        self._trail = trail
        self._rounds: dict[int, dict[Ticket, Tensors]] = {}
        self.version = 0

    def arrive(self, ticket: Ticket, tensors: Tensors) -> tuple[list[Ticket], float]:
        """The tickets that are applied by this, in their order (none, as long as others lack), and
        the norm."""
        if self._rule.parts == 1:
            whole = {ticket: tensors}
        else:
            number = self._round_of(ticket)
            whole = self._rounds.setdefault(number, {})
            whole[ticket] = tensors
            if len(whole) < self._rule.parts:
                return [], 0.0
            del self._rounds[number]
        order = sorted(whole)
        if self._trail is not None:
            self._trail.before(order)
        norm = self._rule.apply(order[0], [whole[ticket] for ticket in order])
        if self._trail is not None:
            self._trail.after()
        for name, buffer in self._buffers.items():
            buffer.copy_(whole[order[0]][name])  # as rank 0's are taken among ranks
        self.version += 1
        return order, norm


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
