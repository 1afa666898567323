"""Where a new version's weights go while the old one serves: decided from what memory there is.

    beside    both on the device: a swap is a change of pointers, a rollback too
    exchange  the new one in the host's memory: a swap copies them past each other, in place
    process   no room for both: a new process has to take this one's place

Pure. Invariant: a tier is chosen only where the version fits in it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Tier(StrEnum):
    BESIDE = "beside"
    EXCHANGE = "exchange"
    PROCESS = "process"


class Room(NamedTuple):
    """Bytes that are free for weights. `apart`: the device has memory of its own; else both are
    the host's."""

    device: int
    host: int
    apart: bool


class NoRoom(Exception):
    """`alone`: it would fit in a process of its own."""

    def __init__(self, message: str, *, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


def choose(needed: int, held: int, room: Room, *, alike: bool, wanted: Tier | None = None) -> Tier:
    """The tier for a version of `needed` bytes beside one of `held` bytes. `alike`: they have the
    same structure, without which there is no exchange. `wanted` is an operator's choice.

    Raises NoRoom.
    """
    both = min(room.device, room.host)
    fits = {
        Tier.BESIDE: needed <= both,
        Tier.EXCHANGE: alike and needed <= room.host and (room.apart or wanted is not None),
        Tier.PROCESS: False,
    }
    order = [wanted] if wanted is not None else [Tier.BESIDE, Tier.EXCHANGE]
    for tier in order:
        if fits[tier]:
            return tier
    alone = held > 0 and needed <= both + held
    beside = f"beside the {held >> 20} MiB of the old one, " if held else ""
    text = f"it takes {needed >> 20} MiB {beside}and {room.device >> 20} MiB are free"
    if room.apart:
        text += f" on the device, {room.host >> 20} MiB on the host"
    if wanted is Tier.PROCESS:
        text = "each version gets a process of its own here"
    if wanted is Tier.EXCHANGE and not alike:
        text = "it has another structure than the old one, with which it cannot be exchanged"
    if held and not alone:
        text += "; it would not fit alone either"
    raise NoRoom(text, alone=alone)
