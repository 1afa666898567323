"""What every source becomes before it is written.

Owns the type and the check of a decoder's. What is made of it is in `blueprint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backends.llm.network_weights import check
from backends.models.config import DecoderConfig, UnsupportedModel


class ImportFailed(Exception):
    """The message names the file and the key, and what would do instead."""


@dataclass(frozen=True, slots=True)
class Material:
    """`config` is a `config.json`. `read` gives a whole tensor, in whatever dtype the source has.
    `files` go beside the weights: tokenizer and generation defaults."""

    name: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    files: Mapping[str, bytes]

    def decoder(self) -> DecoderConfig:
        """Raises ImportFailed."""
        try:
            found = DecoderConfig.parse(self.config)
            check(found, self.shapes)
        except UnsupportedModel as error:
            raise ImportFailed(f"{self.name}: {error}") from error
        return found
