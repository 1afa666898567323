"""What a step's tokens mean for its sequences: who ends and why, and what is told of each.

Owns the way from tokens to `Output`s. Rows that ask for nothing special are looked at together, the
others alone. Invariant: a row that has ended before gets nothing any more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.llm.engine.runner import LikelyRows, Ran
from backends.llm.engine.sampler import BAD
from backends.llm.engine.sequence import Sequence, Table
from backends.llm.generation import NOT_FINITE, Logprob, Output

NOT_ALLOWED = f"{NOT_FINITE}, or the mask of this choice allows no token"


class Ended(NamedTuple):
    sequence: Sequence
    finish: str


def read(ran: Ran, table: Table) -> tuple[list[Output], list[Ended]]:
    """Writes the tokens into the table. The sequences that end are the caller's to end; their last
    outputs are among those returned."""
    rows, tokens, version = ran.plan.sampled, ran.tokens(), ran.plan.version
    _read_prompts(ran)
    alive = ~table.ended[rows]
    if not alive.all():
        rows, tokens = rows[alive], tokens[alive]
    known = table.known[rows]
    full = known + 1 >= table.limit[rows]
    # Of max_tokens 0 there may be no room left for it, and it is not told.
    table.tokens[rows, np.minimum(known, table.tokens.shape[1] - 1)] = tokens
    table.known[rows] = known + 1
    sequences = [table.sequences[row] for row in rows.tolist()]
    outputs = [
        Output(s.key, s.choice, (token,), None, None, s.cached, version)
        for s, token in zip(sequences, tokens.tolist(), strict=True)
        if s is not None
    ]
    assert len(outputs) == len(rows)
    stopped = (table.stops[rows] == tokens[:, None]).any(1)
    odd = np.flatnonzero(table.special[rows] | stopped | full | (tokens == BAD))
    ended: list[Ended] = []
    if len(odd):
        logprobs = _logprobs(ran, alive)
        for place in odd.tolist():
            sequence = sequences[place]
            assert sequence is not None
            output = _odd(sequence, outputs[place], bool(full[place]), logprobs.get(place))
            outputs[place] = output
            if output.finish is not None:
                ended.append(Ended(sequence, output.finish))
    return outputs, ended


def last(sequence: Sequence, finish: str, error: str = "") -> Output:
    """Of a choice that ends without a token."""
    key, choice, version = sequence.key, sequence.choice, sequence.version
    return Output(key, choice, (), finish, None, sequence.cached, version, error)


def _odd(sequence: Sequence, output: Output, full: bool, logprob: Logprob | None) -> Output:
    generation, token = sequence.generation, output.tokens[0]
    if token == BAD:
        error = NOT_FINITE if sequence.mask is None else NOT_ALLOWED
        return output._replace(tokens=(), finish="error", error=error)
    prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, None
    output = output._replace(prompt_logprobs=prompt_logprobs)
    if generation.sampling.max_tokens == 0:
        return output._replace(tokens=(), finish="length")
    if token in generation.sampling.stop_ids:
        return output._replace(tokens=(), finish="stop")
    if logprob is not None:
        output = output._replace(logprobs=(logprob,))
    if sequence.mask is not None:
        try:
            if sequence.mask.accept(token):
                return output._replace(finish="stop")
        except Exception as error:  # a mask is its request's own: only that ends
            return output._replace(tokens=(), finish="error", error=f"the mask failed: {error!r}")
    return output._replace(finish="length") if full else output


def _logprobs(ran: Ran, alive: NDArray[np.bool_]) -> dict[int, Logprob]:
    """By place among the rows that are alive."""
    found = ran.likely()
    if found is None:
        return {}
    tokens, places = ran.tokens(), np.cumsum(alive) - 1
    return {
        int(places[place]): _logprob(found, index, int(tokens[place]), ran.tops[index])
        for index, place in enumerate(ran.asked.tolist())
        if alive[place]
    }


def _logprob(found: LikelyRows, index: int, token: int, top: int) -> Logprob:
    pairs = zip(found.top_ids[index][:top], found.top[index][:top], strict=True)
    return Logprob(token, found.logprobs[index], tuple(pairs))


def _read_prompts(ran: Ran) -> None:
    """Add what this step says of prompts; all choices of a prompt tell the same."""
    for chunk, found in zip(ran.plan.chunks, ran.prompts(), strict=True):
        sequence = chunk.sequence
        if chunk.echo and chunk.start == 0:
            sequence.prompt_logprobs = [None]
        if found is not None and sequence.prompt_logprobs is not None:
            tokens = sequence.generation.prompt[chunk.start + 1 :]
            top = sequence.generation.sampling.logprobs or 0
            sequence.prompt_logprobs += [
                _logprob(found, index, int(tokens[index]), top)
                for index in range(len(found.logprobs))
            ]
        if chunk.echo and chunk.last:
            for follower in chunk.group[1:]:
                follower.prompt_logprobs = sequence.prompt_logprobs
