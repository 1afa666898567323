"""The Python standard library's sources: real text that any machine with Python has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from trainer.data import Text


class StandardLibrary(Text):
    """Its modules without tests, about 12 MB, byte-pair encoded and packed."""

    def __init__(self, length: int = 128, tokenizer: str = "bpe:4096") -> None:
        root = Path(sysconfig.get_path("stdlib"))
        packages = sorted(path.parent for path in root.glob("*/__init__.py"))
        kept = [p for p in packages if p.name not in ("test", "idlelib", "lib2to3", "turtledemo")]
        super().__init__([f"{root}/*.py", *(f"{p}/**/*.py" for p in kept)], length, tokenizer)
