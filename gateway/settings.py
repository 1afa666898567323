"""A configuration together with the text it was read from, as it is handed to the workers.

Owns nothing that changes. The supervisor checks the file; workers get its text, not its path to
read again, so that all of them serve the same even when the file is edited meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway import config
from gateway.config import GatewayConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    path: Path
    overrides: tuple[str, ...]
    text: str
    config: GatewayConfig
    # How often the processes of replicas were replaced, by name.
    turns: Mapping[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Settings:
        """Raises ConfigError. The environment is this process's, which its children share."""
        text = config.read(path)
        parsed = config.parse(text, path, os.environ, overrides, check_files=True)
        return cls(path=path, overrides=tuple(overrides), text=text, config=parsed)

    def again(self) -> Settings:
        """The same file and flags, as they are now. Raises ConfigError."""
        fresh = Settings.read(self.path, self.overrides)
        return replace(fresh, config=fresh.config.turned(self.turns), turns=self.turns)

    def turn(self, replica: str, turn: int) -> Settings:
        """The same with that replica's process at this turn."""
        turns = {**self.turns, replica: turn}
        return replace(self, config=self.config.turned(turns), turns=turns)

    def message(self, runtime: Path) -> dict[str, Any]:
        """What a worker's `configure` gets."""
        return {
            "text": self.text,
            "path": str(self.path),
            "overrides": list(self.overrides),
            "turns": dict(self.turns),
            "runtime": str(runtime),
        }
