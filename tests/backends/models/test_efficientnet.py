"""EfficientNet-Lite: its padding, its sizes, its way in."""

from __future__ import annotations

import pytest
import torch

from backends.checkpoint import Run, read_channel, read_tensors
from backends.importing.deposit import deposit
from backends.importing.material import ImportFailed
from backends.importing.sources import opened
from backends.models.efficientnet import EfficientNetLite, _same


@pytest.mark.parametrize("size", [7, 8, 9, 14])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_padding_is_tensorflows(size, kernel, stride):
    """Against the definition: output o covers inputs from o·stride - before, zeros outside."""
    conv = torch.nn.Conv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(conv.weight)
    image = torch.rand(1, 1, size, size)
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(out, out)
    for y in range(out):
        for x in range(out):
            top, left = y * stride - before, x * stride - before
            rows = slice(max(top, 0), max(top + kernel, 0))
            columns = slice(max(left, 0), max(left + kernel, 0))
            expected[y, x] = image[0, 0, rows, columns].sum()
    torch.testing.assert_close(_same(image, conv)[0, 0], expected)


def test_sizes_of_the_variants_are_the_published_ones():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in EfficientNetLite(v).parameters()) for v in range(5)]
    # Millions of parameters, as Google's table of the Lite models has them.
    assert [round(count / 1e6, 1) for count in counts] == [4.7, 5.4, 6.1, 8.2, 13.0]


def test_published_weights_become_a_version(tmp_path):
    torch.manual_seed(0)
    model = EfficientNetLite(0).eval()
    torch.save(model.state_dict(), tmp_path / "efficientnet-lite0-1a2b.pth")
    run = Run(tmp_path / "run")
    with opened(str(tmp_path / "efficientnet-lite0-1a2b.pth")) as material:
        deposit(material, run)
    channel = read_channel(run, "stable")
    manifest = run.manifest(channel.step)
    assert manifest.model["config"] == {"variant": 0}
    again = EfficientNetLite(**manifest.model["config"]).eval()
    again.load_state_dict(read_tensors(run.folder(channel.step), manifest))
    image = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found, expected = again.infer(image), model.infer(image)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found["probabilities"].sum(-1), torch.ones(2))


def test_a_pickle_that_holds_more_than_tensors_runs_nothing(tmp_path):
    path = tmp_path / "efficientnet-lite0.pth"
    torch.save({"x": print}, path)
    with pytest.raises(ImportFailed, match="efficientnet-lite0"), opened(str(path)):
        pass
    torch.save({"x": 1}, path)
    with pytest.raises(ImportFailed, match="more than tensors"), opened(str(path)):
        pass
