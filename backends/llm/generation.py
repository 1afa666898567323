"""What the text side asks of the engine, and what the engine says back: tokens only, no text.

Owns the types of that seam; loads no torch. Invariant: each choice of a submitted `Generation` gets
exactly one `Output` whose `finish` is set, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

# Why a choice ended. "stop": a stop id or the end of a mask; "length": max_tokens or the context;
# "cancelled": the caller asked; "deadline": its time was over; "error": `Output.error` says what.
FINISHES = ("stop", "length", "cancelled", "deadline", "error")
# The error of a choice whose model computes no numbers.
NOT_FINITE = "the model's logits are not finite"


class TokenMask(Protocol):
    """Which tokens may come next in one choice (structured output). One object per choice; called
    on the device thread only."""

    def allowed(self) -> NDArray[np.uint32]:
        """[ceil(vocabulary/32)], bit `t % 32` of word `t // 32` set where token t may come next.
        Shared and read-only: a mask caches it by state."""
        ...

    def accept(self, token: int) -> bool:
        """The token was chosen; True when nothing may follow it (the choice ends with "stop")."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one token is chosen. The defaults sample from the model's own distribution.

    temperature 0 is greedy. top_k 0, top_p 1 and min_p 0 are off. Penalties as in the OpenAI API
    (presence, frequency: of generated tokens) and as in `transformers` (repetition: of prompt and
    generated ones). `seed` makes the choices a function of (seed, choice index, position) alone,
    whatever else is in the batch; None takes a fresh one. `logprobs` asks for the chosen token's
    log-probability and that of so many likeliest, before temperature, penalties and masks.
    `logit_bias` is added to the logits first.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None
    min_tokens: int = 0
    # Tokens that end the choice; the last one is part of no output. Empty: only length ends it.
    stop_ids: frozenset[int] = frozenset()
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, kw_only=True, eq=False)
class Generation:
    """One request: `n` choices of one prompt, which share its pages.

    `key` names it to `cancel` and in outputs. `deadline` is in `time.monotonic()` seconds. A lower
    `priority` goes first. `tenant` is what fairness is between. `version` pins the weights (None:
    what is served when it is admitted). `mask` makes the mask of one choice.
    """

    key: Hashable
    prompt: Sequence[int]
    sampling: Sampling
    n: int = 1
    priority: int = 0
    tenant: str = ""
    deadline: float | None = None
    version: str | None = None
    mask: Callable[[], TokenMask] | None = None
    # With logprobs: also those of the prompt's tokens, in the first output (`echo`).
    prompt_logprobs: bool = False
    submitted: float = field(default=0.0)


class Logprob(NamedTuple):
    """Of one token: its own log-probability, and the likeliest tokens with theirs, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Output(NamedTuple):
    """New tokens of choice number `choice` of Generation `key`; usually one, more if steps merged.

    `logprobs` has one entry a token where they were asked for. `finish` is set in the last output
    of the choice, which may have no tokens. `cached` is how many prompt tokens were taken from the
    prefix cache. `version` computed these tokens: it changes within a choice only when new weights
    took over before it ended. `prompt_logprobs` has one entry per prompt token (the first is None).
    """

    key: Hashable
    choice: int
    tokens: Sequence[int]
    finish: str | None = None
    logprobs: Sequence[Logprob] | None = None
    cached: int = 0
    version: str = ""
    error: str = ""
    prompt_logprobs: Sequence[Logprob | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What a gateway routes by. Pages are of the KV cache; rates are tokens per second lately."""

    running: int
    waiting: int
    # Prompt tokens that are still to be computed, and an estimate of output tokens still to come.
    prompt_tokens: int
    output_tokens: int
    pages_free: int
    pages_cached: int
    pages_total: int
    prefill_rate: float
    decode_rate: float
    hit_tokens: int
    prompt_total: int


class GenerationEngine(Protocol):
    """The engine as the text side sees it. Every method may be called from any thread and returns
    at once; outputs come through the `emit` given at construction, one list per step, called on the
    device thread."""

    def submit(self, generation: Generation) -> None: ...
    def cancel(self, key: Hashable, choice: int | None = None) -> None:
        """All its choices, or one that has had tokens already."""

    def load(self) -> EngineLoad: ...
    @property
    def max_context(self) -> int:
        """Tokens of prompt and output together that one choice may have."""
        ...
