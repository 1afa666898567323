"""Where a run's server is, and the token that its workers must know.

Owns `<run>/server.json`, readable by its owner only, which the server writes when it listens and
removes when the run is over; and the two ways to do without it on other machines. Invariant: the
token is never shorter than a guess could reach.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError

FILE = "server.json"
TOKEN = "PENSTOCK_RUN_TOKEN"
SHORTEST = 16


class BadToken(TrainerError):
    """The token is missing or too short."""

    code, status = "bad_token", 2


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    token: str


def make_token(environ: Mapping[str, str]) -> str:
    """The one that the environment gives, or a new one. Raises BadToken."""
    token = environ.get(TOKEN)
    if token is None:
        return secrets.token_hex(16)
    if len(token) < SHORTEST:
        raise BadToken(f"{TOKEN} has {len(token)} characters; expected at least {SHORTEST}")
    return token


def write(folder: Path, address: str, token: str) -> None:
    temporary = folder / f".{FILE}-{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(fd, "w") as file:
        json.dump({"address": address, "token": token, "pid": os.getpid()}, file)
    temporary.replace(folder / FILE)


def remove(folder: Path) -> None:
    with suppress(FileNotFoundError):
        (folder / FILE).unlink()


def find(folder: Path, given: str | None, environ: Mapping[str, str]) -> Address | None:
    """From what a person gave, else from the run's folder; None where no server says that it is
    there. Raises BadToken."""
    token = environ.get(TOKEN)
    if given is not None:
        if token is None:
            raise BadToken(f"--address goes with the run's token in {TOKEN}")
        host, _, port = given.rpartition(":")
        return Address(host, int(port), token)
    try:
        found = json.loads((folder / FILE).read_text())
        host, _, port = found["address"].rpartition(":")
        return Address(host, int(port), token or found["token"])
    except (OSError, ValueError, KeyError):
        return None
