"""The recommender on interactions: it learns taste, and recommends what a user would take next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_channel, read_tensors
from backends.models.two_tower import TwoTower
from trainer.config import load
from trainer.process import train

CONFIG = """
run = "{folder}/run"
steps = 120
[model]
class = "backends.models.two_tower:TwoTower"
config = {{ users = 400, items = 20, width = 64, top = 8 }}
[data]
class = "trainer.data:Interactions"
batch_size = 256
[data.config]
files = ["{folder}/taken.csv"]
[optimizer]
lr = 1e-2
[publish]
channel = "stable"
require = "recall > 0.5"
"""


def test_it_learns_what_users_like(tmp_path: Path):
    """Even users take even items, odd ones odd. Of eight guesses, three go to what was taken, five
    are for seven unknown ones of the right kind: at best 0.71. By chance, 0.4."""
    generator = torch.Generator().manual_seed(0)
    rows = ["user,item"]
    for user in range(400):
        half = 2 * torch.randperm(10, generator=generator)[:4] + user % 2
        rows += [f"u{user},i{item}" for item in half.tolist()]
    (tmp_path / "taken.csv").write_text("\n".join(rows))
    path = tmp_path / "train.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    assert train(load(path, {}), {}) == 0
    manifest = Run(tmp_path / "run").manifest(120)
    assert manifest.probe is not None and "model/interactions.json" in manifest.files
    model = TwoTower(users=400, items=20, width=64, top=8)
    model.load_state_dict(read_tensors(Run(tmp_path / "run").folder(120), manifest))
    found = model.eval().infer(torch.arange(400)[:, None])
    assert found["items"].shape == (400, 8) and bool((found["scores"].diff(dim=1) <= 0).all())
    channel = read_channel(Run(tmp_path / "run"), "stable")
    assert channel is not None and manifest.evaluation["recall"] > 0.5


def test_an_unknown_user_is_refused():
    with pytest.raises(ValueError, match="user must be from 0 to 2"):
        TwoTower(users=3, items=4).infer(torch.tensor([[3]]))
    with pytest.raises(ValueError, match="items must be"):
        TwoTower(users=3, items=0)
