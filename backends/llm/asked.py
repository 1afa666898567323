"""What a client's body comes to: prompts in tokens, how to sample, and how to write the answer.

Owns the types between the surfaces (which read bodies and write replies) and the calls (which
drive the engine). No surface knows the engine, and no call knows a surface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypedDict

from backends.llm.generation import Sampling, TokenMask
from backends.wire import Fault


class TokenText(NamedTuple):
    """A token in a client's logprobs. `top`: likeliest tokens as (text, bytes, log-probability)."""

    text: str
    data: bytes
    logprob: float | None
    top: Sequence[tuple[str, bytes, float]]


class Delta(NamedTuple):
    """New text of one choice. `tokens` where log-probabilities were asked for: those of this text.
    `finish` (stop, length) in the choice's last one."""

    choice: int
    text: str
    tokens: Sequence[TokenText] = ()
    finish: str | None = None


class Usage(NamedTuple):
    prompt: int
    completion: int
    cached: int


class Span(TypedDict):
    """So many tokens of a reply were computed by that version."""

    version: str
    tokens: int


class Renderer(Protocol):
    """Writes one reply. Either in one piece (`delta` gives nothing, `end` the whole) or as a stream
    of events. `begin` comes before all deltas, `end` after the last; `failed` in place of `end`
    where bytes have gone out already. `moved`: before the last deltas, where the reply is of more
    than one version; its `model_versions`."""

    @property
    def type(self) -> str:
        """The reply's content type."""
        ...

    def begin(self, version: str) -> bytes: ...
    def delta(self, delta: Delta) -> bytes: ...
    def moved(self, spans: Sequence[Span]) -> None: ...
    def end(self, usage: Usage) -> bytes: ...
    def failed(self, fault: Fault) -> bytes: ...


@dataclass(slots=True, kw_only=True, eq=False)
class Asked:
    """`n` choices of each prompt; choice c of prompt p is number p · n + c in the reply."""

    prompts: Sequence[Sequence[int]]
    sampling: Sequence[Sampling]  # one a prompt: the room that it leaves differs
    renderer: Renderer
    n: int = 1
    stops: Sequence[str] = ()
    mask: Callable[[], TokenMask] | None = None
    priority: int | None = None
    # The answer begins with its prompt, and with the log-probabilities of the prompt's tokens.
    echo: bool = False
    prompt_logprobs: bool = False
    # Answers are texts of their own, not the prompt's continuation.
    begins: bool = True
