"""What a language model is sure of: the probe of its weights.

A replica that goes on otherwise has other numbers or other arithmetic. Invariant: only tokens that
the model is sure of are asked, so that no rounding on another device, or of int8, makes a good
version fail.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from backends.checkpoint import Probe
from backends.models.decoder import Decoder

MOST_TOKENS = 4
# By so much, in logits, the chosen token must be above the next one. int8 moves them by 0.3.
SURE = 1.5
# Of log-probabilities; rounding to bfloat16 moves them by 0.05, int8 weights by 0.2.
NEAR = 0.5


def decoder_probe(model: Decoder, prompts: Sequence[list[int]]) -> Probe | None:
    """Of the prompt that gives the most tokens; None where it is sure of none."""
    best: tuple[list[int], list[int], list[float]] | None = None
    for prompt in prompts:
        with torch.inference_mode():
            tokens, logprobs = _sure(model, prompt)
        if tokens and (best is None or len(tokens) > len(best[1])):
            best = prompt, tokens, logprobs
        if len(tokens) == MOST_TOKENS:
            break
    if best is None:
        return None
    prompt, tokens, logprobs = best
    return Probe({"prompt": prompt}, {"tokens": tokens, "logprobs": logprobs}, 0.0, NEAR)


def _sure(model: Decoder, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities, as far as the model is sure of them."""
    tokens: list[int] = []
    logprobs: list[float] = []
    room = min(MOST_TOKENS, model.config.context - len(prompt))
    while len(tokens) < room:
        logits = model(torch.tensor([[*prompt, *tokens]]))[0, -1].float()
        (first, second), (token, _) = (found.tolist() for found in logits.topk(2))
        if not first - second >= SURE:
            break
        tokens.append(token)
        logprobs.append(float(logits.log_softmax(-1)[token]))
    return tokens, logprobs
