"""Log-probabilities in the forms of the two OpenAI surfaces that have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backends.llm.asked import TokenText


def chat_logprobs(tokens: Sequence[TokenText]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": token.text,
                "logprob": token.logprob,
                "bytes": list(token.data),
                "top_logprobs": [
                    {"token": text, "logprob": logprob, "bytes": list(data)}
                    for text, data, logprob in token.top
                ],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def completion_logprobs(tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
    """`offset`: where in the choice's text the first token begins. The first token of a prompt has
    no log-probability."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {text: logprob for text, _, logprob in token.top} if token.logprob is not None else None
            for token in tokens
        ],
        "text_offset": offsets,
    }
