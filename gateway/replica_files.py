"""What the files of spawned replicas say, before anything is started or replaced: as far as can be
told without starting them.

Owns the question to the replicas' own package, which knows their keys, and the looks at what the
files name: runs, channels, classes. Loads no torch and imports no model. Invariant: what is said to
be wrong would keep the replica from serving; what may still come is only noted.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Container, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from gateway.config import GatewayConfig

PATIENCE_S = 60.0
# The replicas' package is asked in a process of its own, as it is when they run.
_ASK = """
import json, os, sys
from pathlib import Path
try:
    from backends.config import load
    from backends.errors import ConfigError
except ImportError as error:
    sys.exit(print(json.dumps({"missing": str(error)})))
said = []
for file in sys.argv[1:]:
    try:
        found = load(Path(file), os.environ)
    except ConfigError as error:
        said.append({"wrong": str(error)})
    else:
        names = {"model": "model", "run": "run", "channel": "channel", "code": "code",
                 "class": "class_", "kind": "kind"}
        said.append({name: getattr(found, attribute) for name, attribute in names.items()})
print(json.dumps({"files": said}))
"""


class Finding(NamedTuple):
    """`wrong`: it will not serve; else it is only to be known."""

    file: Path
    text: str
    wrong: bool = True

    def __str__(self) -> str:
        # Some say themselves in which file, and on which line of it.
        return self.text if self.text.startswith(f"{self.file}:") else f"{self.file}: {self.text}"


class Looked(NamedTuple):
    """`kinds`: of models, as the files of their replicas have it."""

    findings: list[Finding]
    kinds: dict[str, str]


def look_at(config: GatewayConfig, names: Container[str] | None = None) -> Looked:
    """What the spawned replicas of a configuration are made of, or those of these names."""
    spawned = [
        (model, replica)
        for model, replica in config.replicas()
        if replica.spawned and (names is None or replica.name in names)
    ]
    files = {(r.spawn, model.name): None for model, r in spawned if r.spawn is not None}
    looked = look_into(list(files))
    folder = config.path.resolve().parent
    for _, replica in spawned:
        if replica.command is not None and not _runs(program := replica.command[0], folder):
            text = f'replica "{replica.name}": command: there is no program "{program}"'
            looked.findings.append(Finding(config.path, text))
    return looked


def _runs(program: str, folder: Path) -> bool:
    """Whether there is such a program; one with a place to be filled in is not looked for."""
    if "{" in program:
        return True
    if "/" in program:
        return os.access(folder / program, os.X_OK)
    return shutil.which(program) is not None


def look_into(files: Sequence[tuple[Path, str]]) -> Looked:
    """`files`: of spawned replicas, with the name of the model that the gateway wants of each."""
    if not files:
        return Looked([], {})
    paths = [str(path) for path, _ in files]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK, *paths],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Looked([Finding(files[0][0], f"could not be looked into: {error}", wrong=False)], {})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Looked([Finding(files[0][0], f"could not be looked into: {last}", wrong=False)], {})
    said: dict[str, Any] = json.loads(done.stdout)
    if "missing" in said:
        text = f"not looked into: {said['missing']}; replicas need the package backends"
        return Looked([Finding(files[0][0], text, wrong=False)], {})
    found: list[Finding] = []
    kinds: dict[str, str] = {}
    for (path, model), keys in zip(files, said["files"], strict=True):
        if "wrong" in keys:
            found.append(Finding(path, keys["wrong"]))
        else:
            kinds.setdefault(model, keys["kind"])
            found += _of(path, model, keys)
    return Looked(found, kinds)


def _of(path: Path, model: str, keys: dict[str, Any]) -> Iterator[Finding]:
    if keys["model"] != model:
        yield Finding(path, f'model: it is of "{keys["model"]}", the gateway wants "{model}"')
    folder = path.resolve().parent
    if keys["class"] is not None:
        yield from _class(path, keys["class"], [folder, Path.cwd()])
    run = keys["run"]
    if run is None or "://" in run:
        return
    place = folder / run
    if not place.is_dir():
        yield Finding(path, f"run: there is no run at {place} yet", wrong=False)
        return
    if not (place / "channels" / f"{keys['channel']}.json").is_file():
        text = f'channel: nothing has been published to "{keys["channel"]}" yet; it waits for that'
        yield Finding(path, text, wrong=False)


def _class(path: Path, name: str, folders: Sequence[Path]) -> Iterator[Finding]:
    """`module:Class`: whether a file has it, as far as that can be seen."""
    module, _, wanted = name.partition(":")
    file = _file_of(module, folders)
    if file is None:
        yield Finding(path, f"class: there is no module {module!r} (in {folders[0]} or installed)")
        return
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, ValueError, OSError) as error:
        yield Finding(path, f"class: {file} is no Python: {error}")
        return
    names = _names(tree)
    if names is not None and wanted not in names:
        yield Finding(path, f"class: {file} has no {wanted!r}")


def _file_of(module: str, folders: Sequence[Path]) -> Path | None:
    """The file of a module, found without importing the packages that it is in."""
    where: list[str] = [*map(str, folders), *sys.path]
    spec = None
    for depth in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:depth])
        spec = PathFinder.find_spec(name, where)
        if spec is None:
            return None
        where = list(spec.submodule_search_locations or ())
    return Path(spec.origin) if spec is not None and spec.origin else None


# What a module may make names with, that only show when it runs.
_MAKERS = frozenset({"exec", "globals", "locals", "setattr", "vars"})


def _names(tree: ast.Module) -> set[str] | None:
    """What the module defines or imports, anywhere in it; None where that does not show."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif node.id in _MAKERS:
                return None
    return None if names & {"*", "__getattr__"} else names
