"""The answer to one CALL as it comes about: outputs of the engine in, bytes of the reply out.

Pure. Owns the call's choices, its usage, and what its client has not been sent yet: deltas of a
choice that were not taken are one delta, so a slow client's reply takes no more room than its text.
Invariant: `take` gives the reply's bytes in order, and the last ones exactly once.
"""

from __future__ import annotations

from backends.errors import BackendError, Cancelled, DeadlineExceeded, ModelFailed
from backends.llm.asked import Asked, Delta, Usage
from backends.llm.choice import Choice, written
from backends.llm.generation import Output
from backends.llm.tokenizer import Tokenizer


class Reply:
    def __init__(self, asked: Asked, tokenizer: Tokenizer) -> None:
        self._renderer, self._n, self._tokenizer = asked.renderer, asked.n, tokenizer
        self._prompts, self._prompt_logprobs = asked.prompts, asked.prompt_logprobs
        # Choices that have yet to begin with their prompt.
        self._echo = set(range(len(asked.prompts) * asked.n)) if asked.echo else set[int]()
        self._choices = [
            Choice(
                number,
                tokenizer,
                asked.stops,
                begins=asked.begins,
                min_tokens=asked.sampling[number // asked.n].min_tokens,
            )
            for number in range(len(asked.prompts) * asked.n)
        ]
        self._going = len(self._choices)
        self._untaken: dict[int, Delta] = {}
        self._cached = [0] * len(asked.prompts)
        self._begun = False
        self.version = ""
        self._spans: dict[str, int] = {}  # tokens by version
        # Why there will be no whole answer.
        self.error: BackendError | None = None

    @property
    def type(self) -> str:
        return self._renderer.type

    @property
    def begun(self) -> bool:
        """Bytes of it were taken."""
        return self._begun

    @property
    def complete(self) -> bool:
        return not self._going

    @property
    def usage(self) -> Usage:
        made = sum(choice.tokens for choice in self._choices)
        return Usage(sum(map(len, self._prompts)), made, sum(self._cached))

    @property
    def length(self) -> int:
        """Tokens of a choice, on average: as many as there were steps for it."""
        return self.usage.completion // len(self._choices)

    def ended(self, prompt: int, choice: int) -> bool:
        """Nothing more is needed of that choice of the prompt."""
        return self._choices[prompt * self._n + choice].finished

    def feed(self, prompt: int, output: Output) -> None:
        """An output of the generation of that prompt."""
        number = prompt * self._n + output.choice
        choice = self._choices[number]
        self.version = self.version or output.version
        if output.version:
            made = self._spans.get(output.version, 0)
            self._spans[output.version] = made + len(output.tokens)
        self._cached[prompt] = max(self._cached[prompt], output.cached)
        if choice.finished:
            return
        if output.finish not in (None, "stop", "length"):
            self.error = _error(output)
            return
        delta = choice.feed(output)
        if number in self._echo:
            self._echo.remove(number)
            delta = self._with_prompt(prompt, output, delta or Delta(number, ""))
        if delta is None:
            return
        before = self._untaken.get(number)
        self._untaken[number] = delta if before is None else _merged(before, delta)
        self._going -= delta.finish is not None

    def take(self) -> bytes:
        """Everything that can be sent now; with the end, once it is complete."""
        if not self._begun and not self._untaken:
            return b""
        parts = []
        if not self._begun:
            self._begun = True
            parts.append(self._renderer.begin(self.version))
        if self.complete and len(self._spans) > 1:
            self._renderer.moved(
                [{"version": version, "tokens": made} for version, made in self._spans.items()]
            )
        parts += [self._renderer.delta(delta) for delta in self._untaken.values()]
        self._untaken.clear()
        if self.complete:
            parts.append(self._renderer.end(self.usage))
        return b"".join(parts)

    def broken(self, error: BackendError) -> bytes:
        """How a reply ends that has begun and cannot go on."""
        return self._renderer.failed(error.fault())

    def _with_prompt(self, prompt: int, output: Output, delta: Delta) -> Delta:
        tokens = list(delta.tokens)
        if self._prompt_logprobs and output.prompt_logprobs is not None:
            own = self._prompts[prompt]
            tokens[:0] = [
                written(self._tokenizer, logprob, own[place])
                for place, logprob in enumerate(output.prompt_logprobs)
            ]
        text = self._tokenizer.decode(self._prompts[prompt])
        return delta._replace(text=text + delta.text, tokens=tokens)


def _merged(before: Delta, after: Delta) -> Delta:
    tokens = (*before.tokens, *after.tokens) if after.tokens else before.tokens
    return Delta(before.choice, before.text + after.text, tokens, after.finish)


def _error(output: Output) -> BackendError:
    if output.finish == "deadline":
        return DeadlineExceeded("the deadline passed before the answer was complete")
    if output.finish == "cancelled":
        return Cancelled("the request was cancelled")
    return ModelFailed(output.error or "the engine could not go on")
