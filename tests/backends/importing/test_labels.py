"""Names of a classifier's classes: as many as there are classes, and served with the version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run
from backends.importing.deposit import deposit
from backends.importing.labels import labelled
from backends.importing.material import ImportFailed, Material
from backends.importing.sources import opened
from backends.model import import_class
from backends.models.efficientnet import EfficientNetLite

NAMES = [f"class {number}" for number in range(1000)]


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(NAMES) + "\n")
    return path


def test_a_version_knows_its_classes_by_name(names: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, run = tmp_path / "efficientnet-lite0.pth", Run(tmp_path / "run")
    torch.save(EfficientNetLite().state_dict(), source)
    with opened(str(source)) as material:
        deposit(labelled(material, names), run)
    model = run.manifest(0).model
    served = import_class(str(model["class"]))(**model["config"])
    assert list(served.signature.outputs[0].labels) == NAMES


@pytest.mark.parametrize(
    ("architecture", "text", "said"),
    [
        ("EfficientNetLite", b"cat\ndog\n", "has 2 lines, and should name 1000 classes"),
        ("EfficientNetLite", b"\n" * 1000, "should name 1000 classes"),
        ("EfficientNetLite", b"\xff", "no text in UTF-8"),
        ("BertModel", b"cat\n", "m is no classifier"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    architecture: str, text: bytes, said: str, names: Path
) -> None:
    names.write_bytes(text)
    material = Material("m", {"architectures": [architecture]}, {}, lambda _: torch.zeros(1), {})
    with pytest.raises(ImportFailed, match=said):
        labelled(material, names)
