"""A build of the hot path: used while it is of these very sources, and never after."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import compiled

ROOT = Path(__file__).parent.parent.parent
PURE = {"len", "max", "min", "range", "str"}
# In a process of its own: what is imported stays imported.
CHECK = """
import sys
from pathlib import Path
from gateway import compiled
compiled.ROOT, compiled.PATTERNS = Path({root!r}), ("toy/*.py",)
sys.path.insert(0, {root!r})
{act}
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy").mkdir()
    (folder / "toy" / "__init__.py").write_text("")
    (folder / "toy" / "hot.py").write_text("def double(x: int) -> int:\n    return 2 * x\n")
    return folder


def run(toy, act, **environ):
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(root=str(toy), act=act)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"XDG_CACHE_HOME": str(toy / "cache"), "PATH": "/usr/bin:/bin", **environ},
        check=False,
    )
    return (done.stdout + done.stderr).strip()


USE = "print(compiled.use()); from toy import hot; print(hot.__file__, hot.double(21))"


@pytest.mark.timeout(240)
def test_a_build_is_used_until_its_sources_change(toy):
    assert run(toy, USE).split() == ["False", str(toy / "toy" / "hot.py"), "42"]
    place = run(toy, "print(compiled.build())").splitlines()[-1].strip()
    assert Path(place).is_dir(), place
    used, file, answer = run(toy, USE).split()
    assert (used, answer) == ("True", "42")
    assert file.startswith(place) and file.endswith(".so")
    assert run(toy, USE, PENSTOCK_COMPILED="0").split()[0] == "False"
    # A second build has nothing to do; no half of one is left.
    assert run(toy, "print(compiled.build())").splitlines()[-1] == place
    assert [path.name for path in Path(place).parent.iterdir()] == [Path(place).name]
    source = toy / "toy" / "hot.py"
    source.write_text(source.read_text() + "# another one\n")
    assert run(toy, USE).split()[:2] == ["False", str(source)]


def test_sources_that_do_not_pass_are_told(toy):
    bad = toy / "toy" / "bad.py"
    bad.write_text("def half(x: int) -> int:\n    return str(x)\n")
    try:
        said = run(toy, "compiled.build()")
        assert "CannotCompile" in said and "toy/bad.py:2" in said
    finally:
        bad.unlink()


def test_sources_that_would_mean_something_else_are_told(toy):
    other = toy / "toy" / "other.py"
    other.write_text(
        "class Door:\n    def shut(self) -> int:\n        return 1\n\n    close = shut\n"
    )
    try:
        said = run(toy, "compiled.build()")
        assert "CannotCompile" in said and "toy/other.py:5" in said
    finally:
        other.unlink()


def test_nothing_interpreted_inherits_from_what_is_compiled():
    """mypyc's classes have no such subclasses: making an object of one would fail."""
    hot = {_module(path) for path in compiled.modules()}
    for path in sorted((ROOT / "gateway").rglob("*.py")):
        if _module(path) in hot:
            continue
        tree = ast.parse(path.read_text())
        origin = {
            alias.asname or alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            for base in node.bases if isinstance(node, ast.ClassDef) else ():
                name = ast.unparse(base).split("[")[0]
                module = origin.get(name)
                assert module not in hot or _is_protocol(module, name), f"{path}: {node.name}"


def _module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _is_protocol(module, name):
    return getattr(getattr(importlib.import_module(module), name), "_is_protocol", False)


def test_every_pattern_has_its_modules():
    found = compiled.modules()
    assert len(found) > 40 and all(path.is_file() for path in found)
    assert len(set(found)) == len(found)


def test_no_display_unpacks_a_call_before_another_call():
    """mypyc evaluates what follows ahead of what is unpacked: `[*map(f, x), g()]` runs g first."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in compiled.modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.List | ast.Tuple | ast.Set) and _unpacks_first(node.elts)
    ]
    assert not found


def _unpacks_first(elements: list[ast.expr]) -> bool:
    calls = [_has_call(element) for element in elements]
    return any(
        isinstance(element, ast.Starred) and called and any(calls[at + 1 :])
        for at, (element, called) in enumerate(zip(elements, calls, strict=True))
    )


def _has_call(element: ast.expr) -> bool:
    """Of something whose order could matter."""
    called = [node.func for node in ast.walk(element) if isinstance(node, ast.Call)]
    return any(not isinstance(func, ast.Name) or func.id not in PURE for func in called)
