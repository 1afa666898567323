"""What the engine takes, and what it refuses because it could never run.

Pure. The text side checks what its users write; this is the engine's own door, so that nothing that
comes through it can fail a step that others share. Invariant: what passes can be computed alone on
an empty engine.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np

from backends.llm.engine.sequence import Sequence
from backends.llm.errors import BadRequest, ContextTooLong
from backends.llm.generation import Generation, Sampling

# They are copied from the device for each token; OpenAI's own limit is 20.
MAX_TOP = 128


class Limits(NamedTuple):
    vocabulary: int
    context: int
    choices: int


def admit(generation: Generation, limits: Limits) -> Sequence:
    """Its first choice, which the others follow. Raises BadRequest and ContextTooLong."""
    sampling = generation.sampling
    tokens = np.asarray(generation.prompt, np.int64)
    if tokens.ndim != 1 or not len(tokens):
        raise BadRequest("the prompt has no tokens", param="prompt")
    if tokens.min() < 0 or tokens.max() >= limits.vocabulary:
        raise BadRequest(f"the prompt has tokens beyond {limits.vocabulary - 1}", param="prompt")
    room = limits.context - (1 if sampling.max_tokens else 0)
    if len(tokens) > room:
        raise ContextTooLong(
            f"the prompt has {len(tokens)} tokens; there is room for {room}", param="prompt"
        )
    if not 1 <= generation.n <= limits.choices:
        raise BadRequest(f"n is {generation.n}, not in 1..{limits.choices}", param="n")
    _check(sampling, limits.vocabulary)
    # All choices of one request draw from one seed, at their own numbers.
    seed = secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64
    limit = min(len(tokens) + sampling.max_tokens, limits.context)
    known = tokens.astype(np.int32)
    leader, *followers = (
        Sequence(generation, choice, known, limit, seed) for choice in range(generation.n)
    )
    leader.followers = followers
    return leader


def _check(sampling: Sampling, vocabulary: int) -> None:
    for name, fits, range_ in (
        ("max_tokens", sampling.max_tokens >= 0, "at least 0"),
        ("min_tokens", sampling.min_tokens >= 0, "at least 0"),
        ("temperature", 0 <= sampling.temperature < float("inf"), "a number of at least 0"),
        ("top_k", sampling.top_k >= 0, "at least 0"),
        ("top_p", 0 < sampling.top_p <= 1, "in (0, 1]"),
        ("min_p", 0 <= sampling.min_p <= 1, "in [0, 1]"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < float("inf"), "above 0"),
        ("presence_penalty", abs(sampling.presence_penalty) < float("inf"), "a number"),
        ("frequency_penalty", abs(sampling.frequency_penalty) < float("inf"), "a number"),
        ("logprobs", 0 <= (sampling.logprobs or 0) <= MAX_TOP, f"in 0..{MAX_TOP}"),
    ):
        if not fits:
            value = getattr(sampling, name)
            raise BadRequest(f"{name} is {range_}, not {value}", param=name)
    for name, tokens in (
        ("stop_ids", sampling.stop_ids),
        ("logit_bias", [token for token, _ in sampling.logit_bias]),
    ):
        if any(not 0 <= token < vocabulary for token in tokens):
            raise BadRequest(f"{name} has tokens beyond {vocabulary - 1}", param=name)
