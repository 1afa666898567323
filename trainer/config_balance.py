"""The keys of `[balance]`: what a run divides anew by what it measured.

Owns their meaning and where they have an effect; the choices are in `trainer.partition`. Never
loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config_source import BOOLEAN, SIZE, key, number


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceConfig:
    mesh: bool = key(
        BOOLEAN,
        "take the nearest mesh where that of [parallel] does not fit the ranks",
        default=False,
    )
    layers: bool = key(
        BOOLEAN, "pp: deal layers to stages by measured time and memory", default=False
    )
    samples: bool = key(
        BOOLEAN, "copies: give each rank samples by its measured speed", default=False
    )
    memory: int | None = key(SIZE, "layers: what a rank has for them; no bound", default=None)
    worth: float = key(
        number(0, 1), "the part of a step's time that a new division must save", default=0.05
    )


def contradictions(
    config: BalanceConfig, pp: int, layers: bool, compiles: bool, method: str
) -> Iterator[tuple[str, str]]:
    """`layers`: whether they are dealt by hand."""
    if config.layers and pp == 1:
        yield "balance.layers", "has a meaning only with parallel.pp above 1"
    if config.layers and layers:
        yield "balance.layers", "parallel.layers deals them by hand; keep one of the two"
    if config.layers and compiles:
        yield "balance.layers", "compiled blocks cannot be measured one by one"
    if config.memory is not None and not config.layers:
        yield "balance.memory", "has a meaning only with balance.layers = true"
    if config.samples and (method != "gradients" or pp > 1):
        yield "balance.samples", 'goes with sync.method = "gradients" and parallel.pp = 1'
