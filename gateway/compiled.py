"""The hot path as machine code: where it was built, it is imported instead of its sources.

Owns the list of modules and the place of a build, which is named by a hash of their sources and of
this Python: what was edited since is not found, so a build can be missing, never old. `build` needs
mypyc (the extra "compile"); `use` needs nothing. Only workers use it: they are the hot ones.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import io
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
GROUP = "penstock_hot"
# What a request passes on its way; the rest would gain nothing by it.
PATTERNS = (
    "gateway/lane/[a-z]*.py",
    "gateway/policy/batch*.py",
    "gateway/policy/{arrivals,breaker,bucket,leastwork,load,rendezvous,retry,service}.py",
    "gateway/oip/{codec,infer,parameters,parse,render,reply,statistics,terms,values}.py",
    "gateway/relay/[a-z]*.py",
    "gateway/{departing,flight,http_choosing,http_pool,http_replica,quarantine,waiting}.py",
    "gateway/openai/{gathering,surface}.py",
    "gateway/{batch,dispatch,link,measures,model,replica,request,seating,sizes}.py",
)
OFF = "PENSTOCK_COMPILED"
# What mypyc compiles to something else than it says, and only warns of.
_ALTERED = "warning: Unsupported"


class CannotCompile(Exception):
    """There is no mypyc, no C compiler, or the sources do not pass."""


def missing() -> bool:
    """Whether there is no build of these very sources, though one would be used."""
    return os.environ.get(OFF) != "0" and not _place().is_dir()


def use() -> bool:
    """Import the build from now on, if there is one of these very sources; whether there is.
    `PENSTOCK_COMPILED=0` in the environment: never."""
    place = _place()
    if os.environ.get(OFF) == "0" or not place.is_dir():
        return False
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    files = {
        str(path.relative_to(place)).removesuffix(suffix).replace(os.sep, "."): path
        for path in place.rglob(f"*{suffix}")
    }
    sys.meta_path.insert(0, _Finder(files))
    return True


def build() -> Path:
    """Compile, and where to. Takes a minute. Raises CannotCompile."""
    place = _place()
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="building-", dir=place.parent))
    try:
        _compile(work)
        if _place() != place:
            raise CannotCompile("the sources changed meanwhile; try again")
        # At once or not at all; another process may have been faster.
        if not place.is_dir():
            (work / "lib").rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _forget_others(place)
    return place


def modules() -> list[Path]:
    return sorted(path for pattern in PATTERNS for path in _matches(pattern))


def _compile(work: Path) -> None:
    try:
        from mypyc.build import mypycify
        from setuptools import Distribution
    except ImportError as error:
        raise CannotCompile(f'{error}; pip install "penstock[compile]" has it') from error
    before = Path.cwd()
    os.chdir(ROOT)  # names of modules follow from paths
    warnings = io.StringIO()
    try:
        with redirect_stdout(warnings):
            extensions = mypycify(
                [str(path.relative_to(ROOT)) for path in modules()],
                target_dir=str(work / "c"),
                group_name=GROUP,
                opt_level="2",
                debug_level="0",
            )
        if altered := [line for line in warnings.getvalue().splitlines() if _ALTERED in line]:
            raise CannotCompile("; ".join(altered))
        distribution = Distribution({"name": GROUP, "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(work / "lib"), str(work / "o")
        command.parallel = os.cpu_count() or 1
        command.ensure_finalized()
        command.run()
    except (Exception, SystemExit) as error:
        said = "; ".join(filter(None, (*warnings.getvalue().splitlines()[-9:], str(error))))
        raise CannotCompile(f"the hot path could not be compiled: {said}") from error
    finally:
        os.chdir(before)


def _place() -> Path:
    digest = hashlib.blake2b(sys.version.encode(), digest_size=12)
    for path in modules():
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock" / "compiled" / digest.hexdigest()


def _forget_others(place: Path) -> None:
    """Keep the newest few: several checkouts may each have one."""
    builds = [path for path in place.parent.iterdir() if not path.name.startswith("building-")]
    builds.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for old in builds[4:]:
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def _matches(pattern: str) -> Iterator[Path]:
    """As a shell has it, with one {a,b} at most."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        yield from (path for path in ROOT.glob(pattern) if path.name != "__init__.py")
        return
    names, _, tail = rest.partition("}")
    for name in names.split(","):
        yield ROOT / f"{head}{name}{tail}"


class _Finder(MetaPathFinder):
    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self._files.get(fullname)
        if file is None:
            return None
        loader = importlib.machinery.ExtensionFileLoader(fullname, str(file))
        return importlib.util.spec_from_file_location(fullname, file, loader=loader)
