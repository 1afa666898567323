"""A configuration together with the text it was read from, as it is handed to the workers.

Owns nothing that changes. The supervisor checks the file; workers get its text, not its path to
read again, so that all of them serve the same even when the file is edited meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
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

    @classmethod
    def read(cls, path: Path, overrides: Sequence[str] = ()) -> Settings:
        """Raises ConfigError. The environment is this process's, which its children share."""
        text = config.read(path)
        parsed = config.parse(text, path, os.environ, overrides, check_files=True)
        return cls(path=path, overrides=tuple(overrides), text=text, config=parsed)

    def again(self) -> Settings:
        """The same file and flags, as they are now. Raises ConfigError."""
        return Settings.read(self.path, self.overrides)

    def message(self, runtime: Path) -> dict[str, Any]:
        """What a worker's `configure` gets."""
        return {
            "text": self.text,
            "path": str(self.path),
            "overrides": list(self.overrides),
            "runtime": str(runtime),
        }
