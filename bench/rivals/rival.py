"""One other server: where it is installed and how it is launched as its users would.

Owns its virtual environment under .cache/rivals, made from the pinned requirements.txt in the
rival's folder here. Nothing of a rival is imported into our process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import Contender
from bench.serving import ROOT, ServerFailed

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "rivals"
# While it is unpacked, of what it takes then.
ROOM = 2


@dataclass(frozen=True, slots=True)
class Rival:
    """`start(folder, rival, …)` launches it; a relay's also gets its upstreams' ports. `package`
    tells its version."""

    name: str
    package: str
    start: Callable[..., Contender]
    # Interpreters that it can run on, the first one that exists; empty: ours.
    interpreters: tuple[str, ...] = ()
    # Far behind the others, or busy when idle: not in a quick run, and up only for its own turns.
    slow: bool = False
    # Computes with our build of torch: its environment sees our packages after its own.
    with_torch: bool = True
    # Of what an installation takes, about.
    megabytes: int = 0

    @property
    def requirements(self) -> Path:
        return HERE / self.name / "requirements.txt"

    @property
    def environment(self) -> Path:
        return CACHE / self.name

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def missing(self) -> str | None:
        """Why it cannot be started, or None."""
        stamp = self.environment / "installed.txt"
        if not stamp.is_file():
            return f"not installed; run `python -m bench rivals install {self.name}`"
        if stamp.read_text() != self.requirements.read_text():
            return f"of another version; run `python -m bench rivals install {self.name}`"
        return None

    def launch(self, folder: Path, *more: Any) -> Contender:
        """Raises ServerFailed."""
        if reason := self.missing:
            raise ServerFailed(reason)
        contender = self.start(folder, self, *more)
        contender.versions = {self.package: self.version()}
        return contender

    def version(self) -> str:
        wanted = f"{self.package}=="
        for text in self.requirements.read_text().splitlines():
            if text.startswith(wanted):
                return text.removeprefix(wanted).split()[0]
        raise AssertionError(f"{self.requirements} does not pin {self.package}")

    def install(self) -> None:
        """Its environment with what is pinned, from where it is. Raises InstallFailed."""
        base = self._interpreter()
        self._check_room()
        # What an interrupted installation has put there stays: pip goes on from it.
        (self.environment / "installed.txt").unlink(missing_ok=True)
        self.execute([base, "-m", "venv", str(self.environment)])
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "-r", str(self.requirements)]
        self.execute([*pip, "--disable-pip-version-check"])
        if self.with_torch:
            # After pip, which would take what it sees there for installed.
            site = Path(self.execute([str(self.python), "-c", _SITE]).strip())
            (site / "penstock-packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
            self.execute([str(self.python), "-c", "import torch"])
        (self.environment / "installed.txt").write_text(self.requirements.read_text())

    def _check_room(self) -> None:
        """Raises InstallFailed."""
        CACHE.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(CACHE).free // 10**6
        if free < ROOM * self.megabytes:
            raise InstallFailed(f"needs about {ROOM * self.megabytes} MB; {CACHE} has {free} free")

    def _interpreter(self) -> str:
        for path in self.interpreters:
            with suppress(OSError):
                if subprocess.run([path, "-c", _VERSION], check=False).returncode == 0:
                    return path
        if self.interpreters:
            needed = " or ".join(self.interpreters)
            raise InstallFailed(f"{self.name} needs {needed}, of our own Python's version")
        return sys.executable

    def execute(self, command: list[str]) -> str:
        """What it printed. Raises InstallFailed."""
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise InstallFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout


class InstallFailed(Exception):
    """The message has the command and what it said."""


_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
# Compiled packages of ours are for one minor version of Python.
_VERSION = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r})"
