"""The fields by which a client says how tokens are chosen; the same on every OpenAI surface.

Owns their names, limits and defaults, which are OpenAI's, and those of the common extensions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from backends.llm.generation import Sampling
from backends.llm.surfaces.fields import (
    FLAG,
    POSITIVE,
    TABLE,
    TEXT,
    Fields,
    Kind,
    list_of,
    number,
    whole,
)
from backends.llm.text import TextModel

MAX_STOPS, MAX_STOP_LENGTH = 16, 1024
# As OpenAI's API has it: so many choices of a request, so many likeliest tokens.
MAX_N, MAX_TOP = 128, 20
MAX_TOKENS = 1 << 24
_STOP: Kind[str] = Kind(
    f"a string of 1 to {MAX_STOP_LENGTH} characters",
    lambda value: isinstance(value, str) and 0 < len(value) <= MAX_STOP_LENGTH,
)
_STOPS: Kind[Any] = Kind(
    f"a string or at most {MAX_STOPS} strings, none of them empty",
    lambda value: _STOP.check(value) or list_of(_STOP, MAX_STOPS).check(value),
)
_METADATA: Kind[dict[str, str]] = Kind(
    "an object of at most 16 strings, each of at most 512 characters",
    lambda value: (
        isinstance(value, dict)
        and len(value) <= 16
        and all(isinstance(text, str) and len(text) <= 512 for text in value.values())
    ),
)
_SEED = whole(-(2**63), 2**63 - 1)


class Choosing(NamedTuple):
    """`sampling` has max_tokens of 1 until the prompt's length is known: see `within`."""

    sampling: Sampling
    stops: tuple[str, ...]
    n: int
    priority: int | None

    def within(self, room: int) -> Sampling:
        least = min(self.sampling.min_tokens, room)
        return replace(self.sampling, max_tokens=room, min_tokens=least)


def take_choosing(fields: Fields, text: TextModel) -> Choosing:
    """Raises BadRequest. Does not read the limits on tokens and logprobs: surfaces differ there."""
    stops = fields.take("stop", _STOPS, ())
    ignore_eos = fields.take("ignore_eos", FLAG, False)
    size = text.vocabulary.size
    more = fields.take("stop_token_ids", list_of(whole(0, size - 1), 1024), [])
    own = frozenset() if ignore_eos else text.stop_ids
    top_k = fields.take("top_k", whole(-1, size), 0)
    return Choosing(
        Sampling(
            max_tokens=1,
            temperature=float(fields.take("temperature", number(0, 2), 1.0)),
            top_k=max(top_k, 0),
            top_p=_positive(fields, "top_p", float(fields.take("top_p", number(0, 1), 1.0))),
            min_p=float(fields.take("min_p", number(0, 1), 0.0)),
            repetition_penalty=float(fields.take("repetition_penalty", POSITIVE, 1.0)),
            presence_penalty=float(fields.take("presence_penalty", number(-2, 2), 0.0)),
            frequency_penalty=float(fields.take("frequency_penalty", number(-2, 2), 0.0)),
            seed=fields.take("seed", _SEED, None),
            min_tokens=fields.take("min_tokens", whole(0, MAX_TOKENS), 0),
            stop_ids=own | frozenset(more),
            logit_bias=_bias(fields, size),
        ),
        (stops,) if isinstance(stops, str) else tuple(stops),
        fields.take("n", whole(1, MAX_N), 1),
        fields.take("priority", whole(-(2**31), 2**31 - 1), None),
    )


def _positive(fields: Fields, name: str, value: float) -> float:
    if value <= 0:
        raise fields.wrong(name, "expected a number above 0")
    return value


def _bias(fields: Fields, size: int) -> tuple[tuple[int, float], ...]:
    table = fields.take("logit_bias", TABLE, {})
    bias = []
    for key, value in table.items():
        if not key.isdecimal() or int(key) >= size:
            raise fields.wrong("logit_bias", f"{key!r} is no token id below {size}")
        if not number(-100, 100).check(value):
            raise fields.wrong("logit_bias", f"token {key}: expected a number from -100 to 100")
        bias.append((int(key), float(value)))
    return tuple(bias)


def take_stream(fields: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether a last chunk has the usage."""
    stream = fields.take("stream", FLAG, False)
    if not fields.has("stream_options"):
        return stream, False
    if not stream:
        raise fields.wrong("stream_options", "it has a meaning only with 'stream': true")
    options = Fields(fields.take("stream_options", TABLE, {}), "stream_options")
    usage = options.take("include_usage", FLAG, False)
    options.refuse("include_obfuscation", "chunks are sent as they are", False)
    options.done()
    return stream, usage


def accept_routing(fields: Fields) -> None:
    """Fields that tell the operator or the gateway something, and the model nothing."""
    for name in ("user", "prompt_cache_key", "safety_identifier"):
        fields.take(name, TEXT, None)
    fields.take("metadata", _METADATA, None)
    fields.take("timeout", POSITIVE, None)
    fields.refuse("store", "nothing is stored here", False)
    fields.refuse("service_tier", "requests have no tiers; see x-priority", "auto", "default")
    fields.refuse(
        "prompt_cache_retention", "prompts are cached while there is room", "in_memory", "in-memory"
    )
