"""Names of a classifier's classes, which come from a file beside its weights.

Owns the reading and the count. Invariant: a version has a name for each class, or for none.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backends.importing.material import ImportFailed, Material

CLASSIFIER = "EfficientNetLite"
CLASSES = 1000


def labelled(material: Material, path: Path) -> Material:
    """`path` has a name on each line, in the classes' order. Raises ImportFailed and OSError."""
    if CLASSIFIER not in (material.config.get("architectures") or ()):
        raise ImportFailed(f"--labels: {material.name} is no classifier")
    try:
        labels = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ImportFailed(f"--labels: {path} is no text in UTF-8") from error
    wanted = material.config.get("classes", CLASSES)
    if len(labels) != wanted or not all(map(str.strip, labels)):
        raise ImportFailed(
            f"--labels: {path} has {len(labels)} lines, and should name {wanted} classes, one on "
            "each"
        )
    names = [label.strip() for label in labels]
    return replace(material, config={**material.config, "labels": names})
