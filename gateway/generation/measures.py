"""What a worker counts of one model's calls beyond their ends: tokens, and how they came.

Plain numbers, as `gateway.measures` keeps them. A piece of a stream is what one step of the engine
gave, mostly one token.
"""

from __future__ import annotations

from gateway.measures import SECONDS, Family, Histogram, family
from gateway.policy.tokens import Usage


class CallMeasures:
    """Of streamed answers: `first`, from arrival to the first byte, and `between`, from piece to
    piece."""

    __slots__ = ("answered", "between", "first", "tokens")

    def __init__(self) -> None:
        self.answered: dict[str, int] = {}  # calls by surface: those that wire.SURFACES names
        self.tokens = {"prompt": 0, "cached": 0, "completion": 0}
        self.first = Histogram(SECONDS)
        self.between = Histogram(SECONDS)

    def ended(self, surface: str, usage: Usage) -> None:
        self.answered[surface] = self.answered.get(surface, 0) + 1
        tokens = self.tokens
        tokens["prompt"] += usage.prompt
        tokens["cached"] += usage.cached
        tokens["completion"] += usage.completion

    def families(self, model: str) -> list[Family]:
        return [
            family("penstock_calls_answered_total", "counter", "Calls that were answered.",
                   ["model", "surface"], [[[model, s], n] for s, n in self.answered.items()]),
            family("penstock_tokens_total", "counter",
                   "Tokens of answered calls; cached ones are a part of the prompt.",
                   ["model", "kind"], [[[model, k], n] for k, n in self.tokens.items()]),
            family("penstock_first_token_seconds", "histogram",
                   "From arrival to the first byte of a streamed answer.",
                   ["model"], [[[model], self.first.to_json()]]),
            family("penstock_between_tokens_seconds", "histogram",
                   "From one piece of a streamed answer to the next.",
                   ["model"], [[[model], self.between.to_json()]]),
        ]  # fmt: skip
