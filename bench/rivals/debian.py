"""Rivals that Debian packages: taken as they are installed, or unpacked beside the other rivals.

Owns the folders under .cache/rivals that hold what was unpacked; the system is not changed. Debian
keeps one version of a package, so that is the pin; a record names the version that ran.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.rivals.rival import InstallFailed, Rival

_VERSION = re.compile(r"\d+\.\d+[0-9A-Za-z.+~-]*")


@dataclass(frozen=True, slots=True)
class DebianRival(Rival):
    """`package` is the Debian package and the program's name."""

    @property
    def program(self) -> Path:
        found = shutil.which(self.package)
        return Path(found) if found else self._root / "usr" / "sbin" / self.package

    @property
    def _root(self) -> Path:
        return self.environment / "root"

    @property
    def missing(self) -> str | None:
        if self.program.is_file():
            return None
        return f"not installed; run `python -m bench rivals install {self.name}`"

    @property
    def env(self) -> dict[str, str]:
        """Where the libraries are that were unpacked with it."""
        folders = [str(folder) for folder in (self._root / "usr" / "lib").glob("*-linux-gnu")]
        return {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}

    def version(self) -> str:
        if self.missing is not None:
            return "Debian's"
        done = subprocess.run(
            [self.program, "-v"], env=self.env, capture_output=True, text=True, check=False
        )
        found = _VERSION.search(done.stdout + done.stderr)
        return found[0] if found else "unknown"

    def install(self) -> None:
        """Raises InstallFailed."""
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise InstallFailed(f"apt-get and dpkg are not here; put {self.package} on the PATH")
        shutil.rmtree(self.environment, ignore_errors=True)
        archives = self.environment / "archives"
        (archives / "partial").mkdir(parents=True)
        options = ["-o", "Debug::NoLocking=true", "-o", f"Dir::Cache::archives={archives}"]
        more = ["--download-only", "--yes", "--no-install-recommends"]
        self.execute(["apt-get", "install", *more, *options, self.package])
        for archive in archives.glob("*.deb"):
            self.execute(["dpkg", "--extract", str(archive), str(self._root)])
        shutil.rmtree(archives)
        if self.missing is not None:
            raise InstallFailed(f"{self.package} holds no program of its name")
