"""The other servers: where they are installed, and how each is launched as its users would.

Owns the virtual environments under .cache/rivals (one each, from the pinned requirements.txt in the
rival's folder here). A rival computes with our build of torch: its environment sees our packages
after its own. Nothing of a rival is imported into our process.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender
from bench.rivals import launch
from bench.serving import ROOT, ServerFailed

HERE = Path(__file__).parent
CACHE = ROOT / ".cache" / "rivals"


@dataclass(frozen=True, slots=True)
class Rival:
    """`start(folder, python)` launches it for `small-tensor`. `package` tells its version."""

    name: str
    package: str
    start: Callable[[Path, Path], Contender]
    # Interpreters that it can run on, the first one that exists; empty: ours.
    interpreters: tuple[str, ...] = ()
    # Far behind the others, or busy when idle: not in a quick run, and up only for its own turns.
    slow: bool = False

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

    def launch(self, folder: Path) -> Contender:
        """Raises ServerFailed."""
        if reason := self.missing:
            raise ServerFailed(reason)
        contender = self.start(folder, self.python)
        contender.versions = {self.package: self.version()}
        return contender

    def version(self) -> str:
        wanted = f"{self.package}=="
        for text in self.requirements.read_text().splitlines():
            if text.startswith(wanted):
                return text.removeprefix(wanted)
        raise AssertionError(f"{self.requirements} does not pin {self.package}")

    def install(self) -> None:
        """Make its environment anew. Raises InstallFailed."""
        base = self._interpreter()
        self._run([base, "-m", "venv", "--clear", str(self.environment)])
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "-r", str(self.requirements)]
        self._run([*pip, "--disable-pip-version-check"])
        # After pip, which would take what it sees there for installed.
        site = Path(self._run([str(self.python), "-c", _SITE]).strip())
        (site / "penstock-packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self._run([str(self.python), "-c", "import torch"])
        (self.environment / "installed.txt").write_text(self.requirements.read_text())

    def _interpreter(self) -> str:
        for path in self.interpreters:
            with suppress(OSError):
                if subprocess.run([path, "-c", _VERSION], check=False).returncode == 0:
                    return path
        if self.interpreters:
            needed = " or ".join(self.interpreters)
            raise InstallFailed(f"{self.name} needs {needed}, of our own Python's version")
        return sys.executable

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise InstallFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout


class InstallFailed(Exception):
    """The message has the command and what it said."""


_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
# Compiled packages of ours are for one minor version of Python.
_VERSION = f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])!r})"


def _distribution_python() -> str:
    return "/usr/bin/python{}.{}".format(*sys.version_info)


# In the order of the reports.
RIVALS = {
    rival.name: rival
    for rival in (
        Rival("mosec", "mosec", launch.mosec),
        # Triton's Python backend is linked with a distribution's shared libpython.
        Rival("triton", "nvidia-pytriton", launch.triton, interpreters=(_distribution_python(),)),
        Rival("litserve", "litserve", launch.litserve, slow=True),
        Rival("bentoml", "bentoml", launch.bentoml, slow=True),
        Rival("ray", "ray", launch.ray, slow=True),
    )
}


def chosen(names: Sequence[str] | None, *, quick: bool) -> tuple[str, ...]:
    """Those that were named; else all, in a quick run without the slow ones."""
    if names is not None:
        return tuple(names)
    return tuple(rival.name for rival in RIVALS.values() if not (quick and rival.slow))
