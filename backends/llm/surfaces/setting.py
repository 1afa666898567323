"""What every surface is given beside the body: the model's name, and the grammars in use."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from backends.llm.structured.grammars import Grammars
from backends.llm.surfaces.fields import TEXT, Fields


@dataclass(frozen=True, slots=True)
class Setting:
    model: str
    grammars: Grammars

    def model_of(self, fields: Fields) -> str:
        """As the client named it: the gateway found this replica by that name."""
        return fields.take("model", TEXT, self.model) or self.model

    @staticmethod
    def new_id() -> str:
        return secrets.token_hex(12)
