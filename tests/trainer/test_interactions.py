"""Interactions: numbers for users and items, and each user's last one held out."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import pytest
import torch

from trainer.data import Interactions
from trainer.errors import BadPlugin

CSV = """user,film,stars,when
ann,up,4,10
bob,up,3,11
ann,heat,5,40
ann,jaws,1,20
bob,jaws,2,30
eve,up,5,50
"""


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(CSV)
    return path


def test_what_is_taken_again_counts_once(tmp_path: Path):
    """Where it was taken first; and who took one item only has nothing to be asked about."""
    (tmp_path / "taken.csv").write_text("user,item\na,x\na,y\nb,x\na,x\nb,x\na,z\na,y\n")
    data = Interactions([str(tmp_path / "taken.csv")], again=False)
    assert data.users == ["a"] and data.items == ["x", "y", "z"]
    assert data.train().take(torch.arange(2))["item"].tolist() == [0, 1]
    held_out = data.held_out().take(torch.arange(1))
    assert held_out["item"].tolist() == [2] and held_out["seen"].tolist() == [[0, 1]]


def test_the_last_interaction_of_each_user_is_held_out(ratings):
    data = Interactions([str(ratings)], item="film", value="stars", time="when")
    train, held = data.train(), data.held_out()
    assert (data.users, data.items) == (["ann", "bob"], ["up", "jaws", "heat"])
    import torch

    everything = train.take(torch.arange(len(train)))
    assert everything["user"].tolist() == [0, 1, 0]
    assert everything["item"].tolist() == [0, 0, 1]
    assert everything["value"].tolist() == [4.0, 3.0, 1.0]
    last = held.take(torch.arange(len(held)))
    assert list(zip(last["user"].tolist(), last["item"].tolist(), strict=True)) == [(1, 1), (0, 2)]
    table = orjson.loads(data.files()["interactions.json"])
    assert table["items"][2] == "heat"


def test_who_has_a_number_keeps_it_when_more_happens(ratings):
    """Eve had one interaction, before others, and was left out; now she has two."""
    options = {"item": "film", "time": "when"}
    before = Interactions([str(ratings)], **options)
    ratings.write_text(
        CSV.replace("eve,up,5,50", "eve,alien,5,1") + "eve,up,5,60\nann,brazil,3,61\n"
    )
    after = Interactions([str(ratings)], **options)
    assert after.users == [*before.users, "eve"]
    assert after.items == [*before.items, "alien", "brazil"]
    assert after.counts() == {"users": 3, "items": 5}


def test_tabs_are_commas_too(ratings):
    ratings.write_text(CSV.replace(",", "\t"))
    assert Interactions([str(ratings)], item="film").users == ["ann", "bob"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"item": "book"}, "has no column 'book'; it has user, film, stars, when"),
        ({"item": "film", "value": "user"}, "column 'user' has 'ann', which is no number"),
        ({"item": "film", "least": 9}, "no user has 9 interactions"),
        ({"item": "film", "least": 1}, "data.config.least"),
    ],
)
def test_what_is_wrong_is_named(ratings, options, said):
    with pytest.raises(BadPlugin) as caught:
        Interactions([str(ratings)], **options)
    assert said in str(caught.value)


def test_a_short_row_is_named(ratings):
    ratings.write_text(CSV + "bob\n")
    with pytest.raises(BadPlugin, match=r"ratings.csv:8: has 1 of 4 columns"):
        Interactions([str(ratings)], item="film")


def test_parquet_without_pyarrow_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadPlugin, match="pip install pyarrow"):
        Interactions([str(tmp_path / "a.parquet")])
