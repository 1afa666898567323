"""The text of one choice as its tokens come: detokenised, stopped, with its log-probabilities.

Pure. Owns what is held back. Invariants: the deltas' texts, one after the other, are the text of
the tokens up to the first stop string; after a delta with `finish` there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.llm.asked import Delta, TokenText
from backends.llm.detokenise import Detokeniser
from backends.llm.generation import Logprob, Output
from backends.llm.stops import StopStrings
from backends.llm.tokenizer import Tokenizer


class Choice:
    """`number` is the choice's in the reply. Stop strings count after `min_tokens` tokens."""

    def __init__(
        self,
        number: int,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        *,
        begins: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self.number, self._tokenizer = number, tokenizer
        self._detokeniser = Detokeniser(tokenizer, begins=begins)
        self._stops = StopStrings(stops)
        self._plain = not stops
        self._min_tokens = min_tokens
        self.tokens = 0
        self.finished = False
        # Characters that were decoded, and that were said.
        self._made = self._said = 0
        # Log-probabilities of tokens whose text is held back: (where it begins, where it ends, …).
        self._held: list[tuple[int, int, TokenText]] = []

    def feed(self, output: Output) -> Delta | None:
        """What is new; None for nothing. The engine may go on after a stop string: ask `finished`.
        `finish` other than stop and length is not for here."""
        if self.finished:
            return None
        finish = output.finish
        if self._plain and output.logprobs is None:
            self.tokens += len(output.tokens)
            text = self._detokeniser.feed(output.tokens, final=finish is not None)
            self.finished = finish is not None
            return Delta(self.number, text, (), finish) if text or finish else None
        return self._one_by_one(output)

    def _one_by_one(self, output: Output) -> Delta | None:
        """To know which token a stop string ends at, and where each token's text is."""
        texts: list[str] = []
        hit = False
        last = len(output.tokens) - 1
        for place, token in enumerate(output.tokens):
            final = output.finish is not None and place == last
            self.tokens += 1
            logprob = output.logprobs[place] if output.logprobs else None
            hit = self._decode([token], logprob, final, texts)
            if hit:
                break
        if output.finish is not None and not output.tokens:
            hit = self._decode([], None, True, texts)
        finish = "stop" if hit else output.finish
        self.finished = finish is not None
        text = "".join(texts)
        self._said += len(text)
        tokens = self._released()
        return Delta(self.number, text, tokens, finish) if text or tokens or finish else None

    def _decode(
        self, tokens: Sequence[int], logprob: Logprob | None, final: bool, texts: list[str]
    ) -> bool:
        began = self._made
        text = self._detokeniser.feed(tokens, final=final)
        self._made += len(text)
        if logprob is not None:
            token = written(self._tokenizer, logprob, logprob.token)
            self._held.append((began, self._made, token))
        if self.tokens <= self._min_tokens and not final:
            texts.append(text)
            return False
        said, hit = self._stops.feed(text, final=final)
        texts.append(said)
        return hit

    def _released(self) -> list[TokenText]:
        """Those whose text was said; at the end also one of which a part was."""
        out = []
        while self._held:
            start, end, token = self._held[0]
            if end > self._said and not (self.finished and start < self._said):
                break
            out.append(token)
            del self._held[0]
        return out


def written(tokenizer: Tokenizer, logprob: Logprob | None, token: int) -> TokenText:
    """None: of a prompt's first token, before which there is nothing."""
    text, data = name(tokenizer, token)
    if logprob is None:
        return TokenText(text, data, None, ())
    top = [(*name(tokenizer, token), value) for token, value in logprob.top]
    return TokenText(text, data, logprob.logprob, top)


def name(tokenizer: Tokenizer, token: int) -> tuple[str, bytes]:
    """A token as it stands in log-probabilities: its text, special tokens by their names."""
    data = tokenizer.bytes_of([token])
    if not data:
        text = tokenizer.name_of(token)
        return text, text.encode()
    return data.decode("utf-8", "replace"), data
