"""The optimizer: AdamW or SGD on the shards that this rank holds.

Owns the moments, by parameter name, and the update. It works on local tensors with torch's fused
kernels: element-wise rules need no other shard, and DTensor's dispatch would cost more than the
update of a small model. Its only counter is the trainer's step, so nothing but moments is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from trainer.config import OptimizerConfig, Rule
from trainer.shards import aligned, local

SLOTS = {"adamw": ("mean", "square"), "sgd": ("momentum",)}


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a decay, and a factor of the learning rate."""

    names: tuple[str, ...]
    decay: float
    lr: float = 1.0


class Optimizer:
    """Updates the parameters that require gradients. `slots[slot][name]` is a local moment."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        config: OptimizerConfig,
        repeats: Mapping[str, int] | None = None,
    ) -> None:
        """`repeats`: on how many ranks, of those that are summed over, the same part is held."""
        self._config = config
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        names = SLOTS[config.name] if config.name == "adamw" or config.momentum else ()
        self.slots: dict[str, dict[str, Tensor]] = {
            slot: {name: torch.zeros_like(local(p)) for name, p in self.parameters.items()}
            for slot in names
        }
        self.groups = groups(self.parameters, config.weight_decay, config.rules)
        known = repeats or {}
        shares = [1 / known.get(name, 1) for name in self.parameters]
        self._shares = torch.tensor(shares, dtype=torch.float64) if known else None
        self._grads: dict[str, Tensor] = {}

    def take_gradients(self) -> Tensor:
        """Takes the gradients off the parameters; returns the sum of the local squares, float64."""
        for name, parameter in self.parameters.items():
            grad = parameter.grad
            # A parameter that no sample touched stands still but for its decay and momentum.
            self._grads[name] = (
                local(aligned(grad, parameter))
                if grad is not None
                else torch.zeros_like(local(parameter))
            )
            parameter.grad = None
        if not self._grads:  # where others hold all parameters there are
            return torch.zeros((), dtype=torch.float64)
        norms = torch._foreach_norm(list(self._grads.values()), 2)
        squares = torch.stack([norm.double() for norm in norms]).square()
        if self._shares is None:
            return squares.sum()
        self._shares = self._shares.to(squares.device)
        return (squares * self._shares).sum()

    def scale_gradients(self, factor: Tensor) -> None:
        torch._foreach_mul_(list(self._grads.values()), factor.float())

    def step(self, number: int, rate: float) -> None:
        """Applies the gradients taken; `number` counts from 1 and corrects AdamW's bias."""
        for group in self.groups:
            # A shard may be empty where there are more ranks than rows.
            names = [name for name in group.names if self._grads[name].numel()]
            params = [local(self.parameters[name]) for name in names]
            grads = [self._grads[name] for name in names]
            if not params:
                continue
            moments = [[slot[name] for name in names] for slot in self.slots.values()]
            if self._config.name == "adamw":
                self._adamw(params, grads, moments, group.decay, number, rate * group.lr)
            else:
                self._sgd(params, grads, moments, group.decay, rate * group.lr)
        self._grads.clear()

    def _adamw(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: Sequence[list[Tensor]],
        decay: float,
        number: int,
        rate: float,
    ) -> None:
        """Loshchilov and Hutter, 2019."""
        beta1, beta2 = self._config.betas
        count = torch.full((), float(number), device=params[0].device)
        torch._fused_adamw_(
            params,
            grads,
            moments[0],
            moments[1],
            [],
            [count] * len(params),
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=decay,
            eps=self._config.eps,
            amsgrad=False,
            maximize=False,
        )

    def _sgd(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        moments: Sequence[list[Tensor]],
        decay: float,
        rate: float,
    ) -> None:
        """As torch.optim.SGD: decay is added to the gradient; momentum starts at zero."""
        torch._fused_sgd_(
            params,
            grads,
            moments[0] if moments else [],
            weight_decay=decay,
            momentum=self._config.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )


def groups(
    parameters: Mapping[str, nn.Parameter], decay: float, rules: Mapping[str, Rule]
) -> tuple[Group, ...]:
    """Matrices decay; biases, norms and other vectors do not; the first rule whose pattern matches
    a name changes that."""
    found: dict[tuple[float, float], list[str]] = {}
    for name, parameter in parameters.items():
        rule = next((r for pattern, r in rules.items() if fnmatch(name, pattern)), Rule())
        usual = decay if parameter.ndim > 1 else 0.0
        own = usual if rule.weight_decay is None else rule.weight_decay
        found.setdefault((own, rule.lr), []).append(name)
    return tuple(Group(tuple(names), own, lr) for (own, lr), names in found.items())
