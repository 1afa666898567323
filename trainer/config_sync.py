"""The keys of `[sync]`: how replicas of the model are kept together.

Owns their meaning and which of them have an effect together; the methods are in `trainer.sync` and
`trainer.server`. Never loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.config_source import BOOLEAN, choice, key, number, text, whole

ADDRESS = text('a host and a port, such as "127.0.0.1:7400"', r"[^\s:]+:\d{1,5}")

# Contributions that a server may hold until their rounds are whole.
ROUNDS = 512
# Which keys have an effect with which method.
_METHODS = {
    "every": ("accumulate", "server"),
    "carry": ("accumulate", "server"),
    "outer_lr": ("accumulate", "server"),
    "outer_momentum": ("accumulate", "server"),
    "dtype": ("accumulate", "server"),
    "fragments": ("accumulate",),
    "overlap": ("accumulate",),
    "blend": ("accumulate",),
    "staleness": ("server",),
    "parts": ("server",),
    "workers": ("server",),
    "scale_steps": ("server",),
    "address": ("server",),
    "lease_s": ("server",),
    "patience_s": ("server",),
}
_DELTAS = ("outer_lr", "outer_momentum", "dtype")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncConfig:
    method: str = key(
        choice("gradients", "broadcast", "accumulate", "server"),
        "what travels between replicas: see docs/training.md",
        default="gradients",
    )
    every: int = key(whole(1, 10**6), "steps between exchanges of parameters", default=1)
    carry: str | None = key(
        choice("parameters", "deltas", "gradients"),
        "what is exchanged: parameters (accumulate's default) or deltas, which an outer optimizer "
        "applies; of a server: gradients (its default) or deltas",
        default=None,
    )
    outer_lr: float = key(number(0, 10, above=True), "deltas: the outer rate", default=1.0)
    outer_momentum: float = key(number(0, 0.999), "deltas: Nesterov's momentum", default=0.0)
    dtype: str = key(choice("float32", "bfloat16"), "deltas: as they travel", default="float32")
    fragments: int = key(
        whole(1, 10**4), "parts of the model that take turns, within `every` steps", default=1
    )
    overlap: int = key(
        whole(0, 10**6), "steps for which an exchange may be under way while training", default=0
    )
    blend: float = key(
        number(0, 1), "with overlap: the replica's own share of what it goes on with", default=0.5
    )
    staleness: int = key(
        whole(-1, 10**6),
        "rounds that a worker may be ahead of the slowest; -1: no bound",
        default=0,
    )
    parts: int | None = key(
        whole(1, 64), "tickets in a round, each for one worker; the number of workers", default=None
    )
    workers: int = key(whole(0, 64), "workers that the server starts and restarts here", default=2)
    scale_steps: bool = key(
        BOOLEAN, "deltas: fewer local steps for slower workers, by measured speed", default=False
    )
    address: str = key(ADDRESS, "where the server listens; port 0: any", default="127.0.0.1:0")
    lease_s: float = key(
        number(0.1, 3600), "a worker that is silent for so long has lost its ticket", default=10.0
    )
    patience_s: float = key(
        number(0, 86400), "how long a worker looks for a server that went away", default=60.0
    )

    @property
    def round_parts(self) -> int:
        """Tickets in a round: one for each worker, unless gradients may be applied as they come."""
        alone = self.carries == "gradients" and self.staleness != 0
        return self.parts or (1 if alone else max(1, self.workers))

    @property
    def carries(self) -> str:
        return self.carry or ("gradients" if self.method == "server" else "parameters")


def contradictions(config: SyncConfig, written: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What no single key shows, and keys that would have no effect."""
    for name, methods in _METHODS.items():
        if name in written and config.method not in methods:
            fitting = " or ".join(f'"{method}"' for method in methods)
            yield f"sync.{name}", f"has a meaning only with sync.method = {fitting}"
            return
    allowed = {"server": ("gradients", "deltas")}.get(config.method, ("parameters", "deltas"))
    if config.carries not in allowed:
        if config.carry:
            yield "sync.carry", f"{config.method} carries {' or '.join(allowed)}"
    elif config.carries != "deltas":
        for name in (*_DELTAS, "scale_steps"):
            if name in written:
                yield f"sync.{name}", 'has a meaning only with sync.carry = "deltas"'
    if config.method == "server" and config.carries == "gradients" and config.every > 1:
        yield "sync.every", 'a gradient is of one step; set sync.carry = "deltas" for local steps'
    if config.fragments > config.every:
        yield "sync.fragments", f"expected at most sync.every = {config.every}, as one goes a step"
    if config.overlap >= config.every and config.overlap:
        yield "sync.overlap", f"expected less than sync.every = {config.every}"
    if "blend" in written and not config.overlap:
        yield "sync.blend", "has a meaning only with sync.overlap above 0"


def misfits(config: SyncConfig, steps: int, batch: int) -> Iterator[tuple[str, str]]:
    """What does not go with the length of the run and the size of a batch."""
    rounds = config.method == "accumulate" or (config.method == "server" and not config.scale_steps)
    if rounds and steps % config.every:
        yield "sync.every", f"steps = {steps} is no multiple: the last would be lost"
    if config.method != "server":
        return
    parts, whole = config.round_parts, config.carries == "gradients" or not config.staleness
    if batch % parts:
        yield "sync.parts", f"data.batch_size = {batch} is no multiple of {parts}"
    if whole and parts > 1 and not 0 <= config.staleness < ROUNDS // parts:
        yield "sync.staleness", f"with parts = {parts} expected 0 to {ROUNDS // parts - 1}"
