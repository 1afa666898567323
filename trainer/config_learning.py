"""The keys of `[optimizer]`, `[schedule]`, `[lora]` and `[spike]`: how a model learns.

Owns their meaning and which of them have an effect together. Never loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config_source import NAMES, PAIR, Kind, choice, key, number, whole


@dataclass(frozen=True, slots=True)
class Rule:
    """What is different for the parameters whose names match a pattern."""

    lr: float = 1.0
    weight_decay: float | None = None


def _rules(value: Any) -> Any:
    if not isinstance(value, dict):
        return None
    found: dict[str, Rule] = {}
    for pattern, items in value.items():
        if not isinstance(items, dict) or not items or set(items) - {"lr", "weight_decay"}:
            raise ValueError(f"{pattern!r} must have lr, weight_decay or both")
        if any(type(v) not in (int, float) or not 0 <= v <= 1e6 for v in items.values()):
            raise ValueError(f"{pattern!r} must have numbers from 0")
        found[pattern] = Rule(**{name: float(v) for name, v in items.items()})
    return found


RULES = Kind("a table of patterns, each with lr or weight_decay", _rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    name: str = key(choice("adamw", "sgd"), "the optimizer", default="adamw")
    lr: float = key(number(0, 1e3, above=True), "the learning rate after warm-up")
    weight_decay: float = key(
        number(0, 10), "decay of parameters with two or more dimensions", default=0.0
    )
    betas: tuple[float, float] = key(PAIR, "AdamW's averages", default=(0.9, 0.95))
    eps: float = key(number(0, 1, above=True), "AdamW's floor of the divisor", default=1e-8)
    momentum: float = key(number(0, 1), "SGD's momentum", default=0.9)
    clip: float | None = key(
        number(0, 1e9, above=True), "the largest norm of the gradient", default=None
    )
    rules: Mapping[str, Rule] = key(
        RULES,
        'for parameters that match: { "*.embed*" = { lr = 0.1, weight_decay = 0 } }; lr is a '
        "factor, the first match counts",
        default_factory=dict,
    )
    ema: float | None = key(
        number(0, 1, above=True),
        "decay of a moving average of the weights, which is evaluated and published",
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    name: str = key(
        choice("constant", "cosine", "linear", "wsd"), "how the rate falls", default="constant"
    )
    warmup: int = key(whole(0), "steps over which the rate rises", default=0)
    decay: int | None = key(
        whole(1), "wsd: the last steps, over which the rate falls; a fifth of all", default=None
    )
    final: float = key(number(0, 1), "the rate's share that is left at the end", default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    rank: int | None = key(
        whole(1, 4096),
        "of the updates that learn while the model stays; left out, all learns",
        default=None,
    )
    alpha: float | None = key(
        number(0, 1e6, above=True), "updates count alpha / rank; twice the rank", default=None
    )
    targets: tuple[str, ...] = key(
        NAMES, "patterns of the Linears that get one", default=("*.q_proj", "*.v_proj")
    )
    dropout: float = key(number(0, 0.9), "of what an update is computed from", default=0.0)

    @property
    def scale(self) -> float:
        return (self.alpha / self.rank if self.alpha else 2.0) if self.rank else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeConfig:
    factor: float | None = key(
        number(1, 1e6, above=True),
        "a loss above so many times the usual one stops the run, before it is committed",
        default=None,
    )
    window: int = key(whole(4, 10**5), "steps whose median is the usual loss", default=50)


def learning_contradictions(
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    lora: LoraConfig,
    spike: SpikeConfig,
    tree: Mapping[str, Any],
) -> Iterator[tuple[str, str]]:
    """What no single key shows, and keys that would have no effect."""
    written = tree.get("optimizer", {})
    for name, owner in (("betas", "adamw"), ("eps", "adamw"), ("momentum", "sgd")):
        if name in written and optimizer.name != owner:
            yield f"optimizer.{name}", f'has a meaning only with optimizer.name = "{owner}"'
    if schedule.decay is not None and schedule.name != "wsd":
        yield "schedule.decay", 'has a meaning only with schedule.name = "wsd"'
    if schedule.name == "constant" and "final" in tree.get("schedule", {}):
        yield "schedule.final", 'a constant rate does not fall; choose another "name"'
    if spike.factor is None and "window" in tree.get("spike", {}):
        yield "spike.window", 'has a meaning only with "factor"'
    if lora.rank is None:
        for name in tree.get("lora", {}):
            yield f"lora.{name}", 'has a meaning only with "rank"'
