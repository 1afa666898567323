"""What a generative request will cost, in tokens, before anybody has tokenised it.

Owns three things that are learned from the ends of requests: bytes per token of prompts, the length
of answers by the limit that was asked for, and how much of what a prefix memory promises is really
found in a replica's cache. Fixed memory; reads no clock.
"""

from __future__ import annotations

from typing import NamedTuple

# English text has four bytes a token; a body has JSON around it.
BYTES_PER_TOKEN = 4.0
# Bodies of token ids, and bodies that are mostly something else than a prompt, lie within.
_RATIOS = (0.25, 64.0)
# Weight of a new observation, and of the first ones: a mean until there are enough.
_STEP = 0.05
# So many ends under a limit like this one tell more than all the others.
_ENOUGH = 8
# What generating a token takes, in prompt tokens, as far as rates are believed.
_MOST_WEIGHT = 64.0


class Usage(NamedTuple):
    """What a replica says of a request that has ended. `cached` of the prompt's tokens were not
    computed anew."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


class Estimate(NamedTuple):
    """`size`: bytes of the body; `limit`: the longest answer that was asked for, 0 for none;
    `choices`: so many answers, 0 where the answer has no tokens."""

    size: int
    limit: int
    choices: int
    tokens_in: float
    tokens_out: float


class _Mean:
    __slots__ = ("count", "value")

    def __init__(self, value: float) -> None:
        self.value, self.count = value, 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(_STEP, 1.0 / (self.count + 1))


class TokenWork:
    """`expected`: the length of an answer until any has ended."""

    def __init__(self, expected: float = 256.0) -> None:
        self._ratio = _Mean(BYTES_PER_TOKEN)
        self._length = _Mean(expected)
        self._by_limit: dict[int, _Mean] = {}  # by the limit's bit length: 64 at most
        self._found = _Mean(1.0)
        # Work of a generated token, in prompt tokens; replicas say their rates.
        self.weight = 1.0

    def estimate(self, size: int, limit: int, choices: int) -> Estimate:
        tokens_out = self._length.value
        known = self._by_limit.get(_class(limit))
        if known is not None and known.count >= _ENOUGH:
            tokens_out = known.value
        if limit:
            tokens_out = min(tokens_out, float(limit))
        return Estimate(size, limit, choices, size / self._ratio.value, tokens_out * choices)

    def cost(self, estimate: Estimate) -> float:
        return estimate.tokens_in + self.weight * estimate.tokens_out

    def spared(self, held: dict[str, int]) -> dict[str, float]:
        """Of the cost, by replica: `held` bytes of its prompt should be in its cache."""
        worth = self._found.value / self._ratio.value
        return {name: size * worth for name, size in held.items()} if worth > 0.0 else {}

    def rates(self, prefill: float, decode: float) -> None:
        """Tokens per second that a busy replica computes of prompts, and generates."""
        if prefill > 0.0 and decode > 0.0:
            weight = min(max(prefill / decode, 1.0), _MOST_WEIGHT)
            self.weight += _STEP * (weight - self.weight)

    def ended(self, estimate: Estimate, usage: Usage, promised: int) -> None:
        """A request was answered; `promised` bytes of its prompt should have been cached."""
        if usage.prompt > 0:
            self._ratio.add(min(max(estimate.size / usage.prompt, _RATIOS[0]), _RATIOS[1]))
        if usage.completion > 0:
            each = usage.completion / max(1, estimate.choices)
            self._length.add(each)
            known = self._by_limit.get(_class(estimate.limit))
            if known is None:
                known = self._by_limit[_class(estimate.limit)] = _Mean(each)
            known.add(each)
        if promised > 0 and usage.prompt > 0:
            self._found.add(min(1.0, usage.cached * self._ratio.value / promised))


def _class(limit: int) -> int:
    return min(limit.bit_length(), 63)
