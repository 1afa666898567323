"""The arrival log: which contributions were applied, in which order, to which weights.

Owns `<run>/arrivals.jsonl`. A server that starts again from a checkpoint says how many arrivals
that one holds; what the file has beyond them never happened. Invariant: what `read` gives are the
arrivals that led to the newest weights, each once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from trainer.errors import TrainerError
from trainer.metrics import Journal
from trainer.server.tickets import Ticket

FILE = "arrivals.jsonl"


class LogUnreadable(TrainerError):
    """The arrival log is missing or is not whole."""

    code = "log_unreadable"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A contribution to `ticket`, computed from version `base`; `hash` is of its bytes."""

    ticket: Ticket
    base: int
    hash: str
    worker: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Commit:
    """A checkpoint that holds the first `arrivals` arrivals."""

    step: int
    arrivals: int


@dataclass(frozen=True, slots=True)
class Log:
    """`origin`: the checkpoint from which the server first began, 0 for none."""

    origin: int
    arrivals: Sequence[Arrival]
    commits: Sequence[Commit]


class ArrivalLog:
    """Appends. `step` is where the server goes on, with `arrivals` behind it."""

    def __init__(self, folder: Path, step: int, arrivals: int) -> None:
        self._journal = Journal(folder / FILE)
        self.count = arrivals
        self._journal.write("resume", step=step, arrivals=arrivals)

    def add(self, arrival: Arrival) -> None:
        self.count += 1
        self._journal.write(
            "arrival",
            ticket=arrival.ticket.row,
            base=arrival.base,
            hash=arrival.hash,
            worker=arrival.worker,
            seconds=round(arrival.seconds, 6),
        )

    def commit(self, step: int) -> None:
        """Before the checkpoint of `step` is begun."""
        self._journal.write("commit", step=step, arrivals=self.count)

    def close(self) -> None:
        self._journal.close()


def read(folder: Path) -> Log:
    """Raises LogUnreadable."""
    path = folder / FILE
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise LogUnreadable(f"{path} cannot be read: {error.strerror}") from error
    arrivals: list[Arrival] = []
    commits: list[Commit] = []
    origin = 0
    for number, line in enumerate(lines, 1):
        try:
            found = orjson.loads(line)
            if found["event"] == "resume" and not found["arrivals"]:
                origin = found["step"]
            _take(found, arrivals, commits)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            # A kill cuts a line short; the server that came next began with a whole one.
            following = lines[number : number + 1]
            if following and b'"event":"resume"' not in following[0]:
                raise LogUnreadable(f"{path}:{number}: is no arrival") from error
    return Log(origin, arrivals, commits)


def _take(line: Mapping[str, Any], arrivals: list[Arrival], commits: list[Commit]) -> None:
    if line["event"] == "resume":
        if line["arrivals"] > len(arrivals):
            raise ValueError(f"arrivals {len(arrivals)} … {line['arrivals']} are missing")
        del arrivals[line["arrivals"] :]
        commits[:] = [commit for commit in commits if commit.arrivals <= line["arrivals"]]
    elif line["event"] == "commit":
        commits.append(Commit(line["step"], line["arrivals"]))
    else:
        arrivals.append(
            Arrival(
                Ticket(*line["ticket"]),
                line["base"],
                line["hash"],
                line["worker"],
                line["seconds"],
            )
        )
