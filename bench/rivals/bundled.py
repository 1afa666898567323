"""Rivals that are libraries of our own environment: there is nothing to install.

Owns the telling of their version, which constraints.txt pins.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bench.rivals.rival import InstallFailed, Rival


@dataclass(frozen=True, slots=True)
class BundledRival(Rival):
    @property
    def missing(self) -> str | None:
        try:
            version(self.package)
        except PackageNotFoundError:
            return f"not installed; run `pip install -c constraints.txt {self.package}`"
        return None

    def version(self) -> str:
        return version(self.package) if self.missing is None else "none"

    def install(self) -> None:
        """Raises InstallFailed where it is not there already."""
        if reason := self.missing:
            raise InstallFailed(reason)
