"""Who took what: `class = "trainer.data:Interactions"`, from CSV or Parquet files.

Owns the reading of the columns and the numbers that stand for users and items; the table of them is
published beside the weights. Samples have "user", "item" and, where a column of values is named,
"value"; where nobody takes an item again, what is held out has "seen" too: the items that its user
had until then, filled up with -1. Invariants: what is held out is each user's last interaction: a
model is asked about the future, of users that it has seen. Who has a number keeps it when later
interactions are added.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainer.data.batches import Tensors
from trainer.data.corpus import matching
from trainer.errors import BadPlugin

# Beside the weights: {"users": [id, …], "items": [id, …]}, the number being the place.
TABLE = "interactions.json"
Row = tuple[str, ...]


class Interactions:
    """`user`, `item`, `value` and `time` name columns. Without `time`, files are in order.

    Users with fewer than `least` interactions are left out. `again`: whether users take an item
    again; where not, only the first time counts, and what they had is no answer (see the model).
    """

    def __init__(
        self,
        files: Sequence[str],
        user: str = "user",
        item: str = "item",
        value: str | None = None,
        time: str | None = None,
        least: int = 2,
        again: bool = True,
    ) -> None:
        if not isinstance(least, int) or least < 2:
            raise BadPlugin("data.config.least: expected a number from 2: one is held out")
        names = [user, item, *filter(None, (value, time))]
        rows = [row for file in matching(files) for row in _rows(file, names)]
        if time is not None:
            rows.sort(key=lambda row: _number(row[-1], time))
        if not again:
            first: dict[Row, Row] = {}
            for row in rows:
                first.setdefault(row[:2], row)
            rows = list(first.values())
        user_numbers, item_numbers = _numbered(rows, least)
        rows = [row for row in rows if row[0] in user_numbers]
        if not rows:
            raise BadPlugin(f"data.config.files: no user has {least} interactions")
        self.users, self.items = list(user_numbers), list(item_numbers)
        users = np.asarray([user_numbers[row[0]] for row in rows], np.int64)
        items = np.asarray([item_numbers[row[1]] for row in rows], np.int64)
        columns = {"user": users, "item": items}
        if value is not None:
            values = [_number(row[2], value) for row in rows]
            columns["value"] = np.asarray(values, np.float32)
        last = _last(users)
        self._train, self._held_out = _taken(columns, ~last), _taken(columns, last)
        self._again = again
        self._fingerprint = xxhash.xxh3_64_hexdigest(orjson.dumps(rows))

    def train(self) -> Table:
        return Table(self._train, self._fingerprint)

    def held_out(self) -> Table:
        if self._again:
            return Table(self._held_out, self._fingerprint)
        seen: dict[int, list[int]] = {}
        pairs = zip(self._train["user"].tolist(), self._train["item"].tolist(), strict=True)
        for user, item in pairs:
            seen.setdefault(user, []).append(item)
        rows = [torch.tensor(seen[user]) for user in self._held_out["user"].tolist()]
        return Answers(self._held_out, self._fingerprint, rows)

    def counts(self) -> Mapping[str, int]:
        return {"users": len(self.users), "items": len(self.items)}

    def files(self) -> Mapping[str, bytes]:
        return {TABLE: orjson.dumps({"users": self.users, "items": self.items})}


class Table(Tensors):
    def __init__(self, tensors: Mapping[str, Tensor], fingerprint: str) -> None:
        super().__init__(tensors)
        self.fingerprint = fingerprint


class Answers(Table):
    """With what each sample's user had: as long as the longest of those that are taken."""

    def __init__(
        self, tensors: Mapping[str, Tensor], fingerprint: str, seen: Sequence[Tensor]
    ) -> None:
        super().__init__(tensors, fingerprint)
        self._seen = seen

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        rows = [self._seen[index] for index in indices.tolist()]
        seen = pad_sequence(rows, batch_first=True, padding_value=-1)
        return {**super().take(indices), "seen": seen}


def _rows(file: Path, names: Sequence[str]) -> Iterator[Row]:
    """Raises BadPlugin for a file that lacks a column, or a row that is short."""
    if file.suffix == ".parquet":
        yield from _parquet(file, names)
        return
    with file.open(newline="", encoding="utf-8-sig") as text:
        sample = text.readline()
        text.seek(0)
        reader = csv.reader(text, delimiter="\t" if "\t" in sample else ",")
        head = next(reader, [])
        _expect(file, names, head)
        places = [head.index(name) for name in names]
        for number, row in enumerate(reader, 2):
            if not row:
                continue
            try:
                yield tuple(row[place] for place in places)
            except IndexError as error:
                raise BadPlugin(
                    f"{file}:{number}: has {len(row)} of {len(head)} columns"
                ) from error


def _parquet(file: Path, names: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise BadPlugin(
            f"data.config.files: {file} is Parquet, which needs pyarrow; pip install pyarrow, or "
            "write it as CSV"
        ) from error
    opened = parquet.ParquetFile(file)
    _expect(file, names, opened.schema_arrow.names)
    for batch in opened.iter_batches(columns=list(names)):
        columns = [batch.column(name).to_pylist() for name in names]
        yield from (tuple(map(str, row)) for row in zip(*columns, strict=True))


def _expect(file: Path, names: Sequence[str], head: Sequence[str]) -> None:
    for name in names:
        if name not in head:
            raise BadPlugin(f"{file}: has no column {name!r}; it has {', '.join(head) or 'none'}")


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise BadPlugin(f"data.config: column {name!r} has {text!r}, which is no number") from error


def _numbered(rows: Sequence[Row], least: int) -> tuple[dict[str, int], dict[str, int]]:
    """Users by the row that is their `least`-th, items by the row with which they come to count: so
    that rows which are added behind change no number."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    waiting: dict[str, list[str]] = {}
    for user, item, *_ in rows:
        if user not in users:
            waiting.setdefault(user, []).append(item)
            if len(waiting[user]) < least:
                continue
            users[user] = len(users)
        for one in waiting.pop(user, [item]):
            items.setdefault(one, len(items))
    return users, items


def _last(users: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are the last of their user."""
    last = np.zeros(len(users), np.bool_)
    _, first_from_behind = np.unique(users[::-1], return_index=True)
    last[len(users) - 1 - first_from_behind] = True
    return last


def _taken(columns: Mapping[str, NDArray[Any]], rows: NDArray[np.bool_]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(column[rows]) for name, column in columns.items()}
