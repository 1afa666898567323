"""The ranks of one attempt: how they find each other, agree, and hear that they should stop.

Owns the process groups and the signals. Under torchrun every restart is an attempt with its own
prefix in the store: without it, workers read the addresses of dead ranks (seen with torch 2.13) and
a restart hangs or burns another. Invariant: `leader` ends the same way on every rank.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist

from trainer.errors import TrainerError
from trainer.meeting import meet

T = TypeVar("T")

# A rank may verify, or write, a large checkpoint while the others wait for it.
PATIENCE = timedelta(minutes=30)
# A person who presses Ctrl-C again does so later than that.
AGAIN_S = 1.0
# How long the first contact may take before the cause is likelier a wrong address.
CONTACT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Place:
    """This process among the ranks, as torchrun's environment says it; alone without it."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    restarts: int = 0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Place:
        if "RANK" not in environ or "WORLD_SIZE" not in environ:
            return cls()
        return cls(
            rank=int(environ["RANK"]),
            ranks=int(environ["WORLD_SIZE"]),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            restarts=int(environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )


class LeaderFailed(TrainerError):
    """Rank 0 stopped; it has said why, so the others need not."""

    code = "leader_failed"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_status = status


@dataclass(frozen=True, slots=True)
class World:
    """The ranks, connected. `background` serves commits, which run beside the training's own
    collectives and must not mix with them; it is None for a single rank."""

    place: Place
    device: torch.device
    background: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def ranks(self) -> int:
        return self.place.ranks

    @property
    def leads(self) -> bool:
        return self.place.rank == 0

    def leader(self, act: Callable[[], T]) -> T:
        """Rank 0 acts; every rank gets its result. Raises on rank 0 what `act` raised, and
        LeaderFailed on the others. Collective; the result must pickle."""
        if self.ranks == 1:
            return act()
        outcome: list[object] = [None, None]
        failure: BaseException | None = None
        if self.leads:
            try:
                outcome[0] = act()
            except Exception as error:
                failure = error
                outcome[1] = (str(error), getattr(error, "status", 1))
        dist.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if isinstance(outcome[1], tuple):
            raise LeaderFailed(*outcome[1])
        return outcome[0]  # type: ignore[return-value]

    def close(self) -> None:
        if self.ranks > 1:
            dist.destroy_process_group()


def choose_device(asked: str, place: Place) -> torch.device:
    """Raises ValueError when there is no such device."""
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if place.local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"rank {place.rank} needs GPU {place.local_rank}, but there are "
            f"{torch.cuda.device_count()}; start fewer ranks, or set device=cpu"
        )
    return torch.device("cuda", place.local_rank)


def join(place: Place, device: torch.device, environ: Mapping[str, str]) -> World:
    """Connects this rank to the others; returns when all are there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place.ranks == 1:
        return World(place, device, None)
    from_agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        environ["MASTER_ADDR"],
        int(environ["MASTER_PORT"]),
        is_master=place.rank == 0 and not from_agent,
        timeout=CONTACT,
        wait_for_workers=False,
    )
    attempt = f"trainer/{meet(store, place.rank, place.ranks, CONTACT)}"
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore(attempt, store),  # type: ignore[attr-defined]
        rank=place.rank,
        world_size=place.ranks,
        timeout=PATIENCE,
        device_id=None if device.type == "cpu" else device,
    )
    return World(place, device, dist.new_group(backend="gloo", timeout=PATIENCE))


class Stop:
    """Hears SIGTERM and SIGINT; the ranks agree at the next step. A second SIGINT interrupts, but
    not at once: for one Ctrl-C, torchrun sends another after the terminal's own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signal: signal.Signals | None = None
        self._clock, self._at = clock, 0.0
        self._before: dict[signal.Signals, object] = {}

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._heard)

    def close(self) -> None:
        for number, handler in self._before.items():
            with suppress(TypeError):  # a handler that Python did not install cannot be put back
                signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.signal, self._at = signal.Signals(number), self._clock()
        elif number == signal.SIGINT and self._clock() - self._at > AGAIN_S:
            raise KeyboardInterrupt
