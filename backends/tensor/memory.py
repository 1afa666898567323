"""Memory of versions that come and go beside traffic: is there room, exchanging and freeing it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class Uninitialised(TorchFunctionMode):
    """Parameters of modules made under it are not filled with random numbers: the checkpoint has
    them all, and untouched memory takes neither time nor room."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def free(tensors: Iterable[torch.Tensor]) -> None:
    """Give the memory back now, one tensor at a time and by an operation that lets go of the
    interpreter: unmapping a gigabyte takes as long as many batches. Nothing may use them again."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.set_()  # type: ignore[call-overload]


def exchange(one: nn.Module, other: nn.Module) -> None:
    """Each gets the other's values, in place: addresses on the device stay. Both have the same
    parameters and buffers; a tied one is exchanged once."""
    theirs = dict(_places(other))
    with torch.no_grad():
        for name, place in _places(one):
            kept = place.to(theirs[name].device, copy=True)
            place.copy_(theirs[name])
            theirs[name].copy_(kept)


def _places(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def room(device: torch.device) -> int:
    """Bytes that weights on `device` may still take; they are read into the host's memory first."""
    if device.type == "cuda":
        return min(int(torch.cuda.mem_get_info(device)[0]), host_room())
    return host_room()


def host_room() -> int:
    """Bytes that we may still take, by the machine and by our cgroup."""
    rooms = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):  # not on this system: then the free pages have to do
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                rooms[0] = int(line.split()[1]) << 10
    with suppress(OSError, ValueError):  # no cgroup, or "max": no limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        rooms.append(limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(min(rooms), 0)
