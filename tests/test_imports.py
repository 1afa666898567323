"""The import rule: `backends` is the bottom, the gateway sees only its wire, nothing sees tests."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What each package may import of the project, beyond itself.
ALLOWED = {
    "backends": set(),
    "trainer": {"backends"},
    "gateway": {"backends.wire"},
}


def imports(path: Path, package: str) -> set[str]:
    """Absolute names of all modules that the file imports, wherever the statement stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert not node.level, f"{path}: relative import; use the full path"
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def covered(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(a + ".") or a.startswith(name + ".") for a in allowed)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_the_design_allows(package):
    own = {"backends", "trainer", "gateway", "bench", "tests"}
    breaches = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / package).rglob("*.py")
        for name in imports(path, package)
        if name.split(".")[0] in own - {package} and not covered(name, ALLOWED[package])
    ]
    assert not breaches


def test_the_gateway_imports_nothing_from_backends_but_the_wire():
    for path in (ROOT / "gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "backends":
                assert {alias.name for alias in node.names} == {"wire"}, path


def test_the_gateway_never_loads_torch():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "gateway").rglob("*.py")
        if path.name != "__main__.py"
    ]
    code = f"import sys\nfor m in {modules!r}: __import__(m)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
