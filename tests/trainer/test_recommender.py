"""The recommender on interactions: it learns taste, and recommends what a user would take next."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backends.checkpoint import Run, read_channel, read_tensors
from backends.models.two_tower import TwoTower
from trainer.build import prepare
from trainer.config import load
from trainer.data import Interactions
from trainer.errors import BadPlugin, RunMismatch
from trainer.process import train
from trainer.reporting import flops_per_sample

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


def test_nobody_is_shown_what_it_has(tmp_path: Path):
    """Each takes four of its ten; the last is held out, so that seven are left to guess it from,
    and three guesses hit it three times in seven. With what was taken in the way, it would be
    next to never: that is what is learnt best."""
    generator = torch.Generator().manual_seed(0)
    rows = ["user,item"]
    for user in range(400):
        four = (2 * torch.randperm(10, generator=generator)[:4] + user % 2).tolist()
        rows += [f"u{user},i{item}" for item in (*four[:3], *four)]  # the first three twice
    (tmp_path / "taken.csv").write_text("\n".join(rows))
    text = CONFIG.format(folder=tmp_path).replace("top = 8", "top = 3, again = false")
    text = text.replace("[optimizer]", "again = false\n[optimizer]").replace("0.5", "0.3")
    path = tmp_path / "train.toml"
    path.write_text(text)
    assert train(load(path, {}), {}) == 0
    manifest = Run(tmp_path / "run").manifest(120)
    assert manifest.evaluation["recall"] > 0.3 and manifest.probe is not None
    assert manifest.position == 120 * 256
    model = TwoTower(users=400, items=20, width=64, top=3, again=False)
    model.load_state_dict(read_tensors(Run(tmp_path / "run").folder(120), manifest))
    held_out = Interactions([str(tmp_path / "taken.csv")], again=False).held_out()
    batch = held_out.take(torch.arange(400))
    assert batch["seen"].shape == (400, 3) and len(held_out) == 400
    found = model.eval().infer(batch["user"][:, None], batch["seen"])["items"]
    assert not bool((found[:, :, None] == batch["seen"][:, None, :]).any())
    hit = (found == batch["item"][:, None]).any(1).float().mean()
    assert float(hit) == pytest.approx(manifest.evaluation["recall"], abs=1e-6)


def test_what_is_left_out_changes_nothing_else():
    model = TwoTower(users=2, items=6, top=4, again=False).eval()
    user = torch.tensor([[0], [1]])
    whole = TwoTower(users=2, items=6, top=6).eval()
    whole.load_state_dict(model.state_dict())
    order = whole.infer(user)
    found = model.infer(user, torch.tensor([[-1, -1], [0, 3]]))
    assert torch.equal(found["items"][0], order["items"][0][:4])
    left = [item for item in order["items"][1].tolist() if item not in (0, 3)]
    assert found["items"][1].tolist() == left
    none = model.infer(user, torch.arange(5).expand(2, 5))["items"]
    assert none.tolist() == [[5, -1, -1, -1]] * 2
    with pytest.raises(ValueError, match="seen must be from 0 to 5, or -1"):
        model.infer(user, torch.tensor([[6], [0]]))
    assert model.infer(user, torch.zeros(2, 0, dtype=torch.int64))["items"].shape == (2, 4)


def write(folder: Path, users: int, steps: int, model: str) -> Path:
    """Each user takes four items of twenty."""
    rows = ["user,item", *(f"u{u},i{(u + 5 * n) % 20}" for n in range(4) for u in range(users))]
    (folder / "taken.csv").write_text("\n".join(rows))
    text = CONFIG.format(folder=folder).replace("steps = 120", f"steps = {steps}")
    text = text.replace("config = { users = 400, items = 20, width = 64, top = 8 }", model)
    text = text.replace("recall > 0.5", "recall >= 0")
    path = folder / "train.toml"
    path.write_text(f"{text}\n[checkpoint]\nkeep_every = 2\n")
    return path


def test_the_data_says_how_many_there_are(tmp_path: Path):
    assert train(load(write(tmp_path, 40, 2, ""), {}), {}) == 0
    assert Run(tmp_path / "run").manifest(2).model["config"] == {"users": 40, "items": 20}
    with pytest.raises(BadPlugin, match=r"model\.config\.users: is 30, and the data has 40"):
        train(load(write(tmp_path, 40, 2, "config = { users = 30 }"), {}), {})


def test_what_is_computed_once_for_a_batch_is_shared_by_its_samples(tmp_path: Path):
    """As the tower of items is."""

    def counted(batch: int) -> float:
        text = write(tmp_path, 40, 2, "config = { users = 40, items = 500 }")
        session = prepare(load(text, {}, (f"data.batch_size={batch}",)), 1)
        found = flops_per_sample(session.definition, session)
        assert found is not None
        return found

    alone, eight = counted(1), counted(8)
    user = 3 * 2 * (64 * 128 + 128 * 64)
    scores = 2 * 3 * 500 * 64
    assert alone == pytest.approx(user + 500 * user + scores, rel=0.01)
    assert eight == pytest.approx(user + 500 * user / 8 + scores, rel=0.01)


def test_a_run_learns_from_what_was_taken_since(tmp_path: Path):
    """Other data: not by going on as if nothing were new, but anew, from the weights alone. What
    was begun so goes on like any other training."""
    room = "config = { users = 50, items = 20 }"
    assert train(load(write(tmp_path, 40, 2, room), {}), {}) == 0
    with pytest.raises(RunMismatch, match=r'model.init = ".*run@2"'):
        train(load(write(tmp_path, 45, 4, room), {}), {})
    again = f'{room}\ninit = "{tmp_path}/run@2"'
    assert train(load(write(tmp_path, 45, 4, again), {}), {}) == 0
    assert train(load(write(tmp_path, 45, 6, again), {}), {}) == 0
    run = Run(tmp_path / "run")
    assert run.steps() == [2, 4, 6]
    assert [run.manifest(step).parent for step in (4, 6)] == [
        run.manifest(step).hash for step in (2, 4)
    ]
    # 6 went on from 4, its position with it.
    assert run.manifest(6).position == 2 * run.manifest(4).position
    channel = read_channel(run, "stable")
    assert channel is not None and (channel.step, channel.generation) == (6, 3)


def test_an_unknown_user_is_refused():
    with pytest.raises(ValueError, match="user must be from 0 to 2"):
        TwoTower(users=3, items=4).infer(torch.tensor([[3]]))
    with pytest.raises(ValueError, match="items must be"):
        TwoTower(users=3, items=0)
