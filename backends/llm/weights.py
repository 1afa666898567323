"""A version's network from its checkpoint: on one device, or in parts on several ranks.

Owns the choice of dtype and device and the order to read. What it sends to other ranks is a
`Reading`. Raises NoRoom where it does not fit beside what serves, ModelFailed where the checkpoint
is no decoder, and what reading raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from backends.checkpoint import Manifest
from backends.checkpoint.reading import Pace
from backends.errors import ModelFailed
from backends.llm.network import DecoderNetwork, Network
from backends.llm.network_choice import ChosenNetwork, choose_network
from backends.models.config import DecoderConfig
from backends.tensor.memory import host_room, room
from backends.tiers import Room, Tier, choose

if TYPE_CHECKING:
    import torch.distributed as dist

DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
    "int8": torch.bfloat16,  # of the activations; the weights alone are int8
}  # fmt: skip


class Reading(NamedTuple):
    """Read this step's weights as `weights` says ("auto": as they were trained)."""

    folder: Path
    manifest: Manifest
    weights: str
    device: str
    page_size: int
    bytes_per_second: int | None

    @property
    def dtype(self) -> str:
        described = self.manifest.model.get("config") or {}
        name = self.weights
        if name == "auto":
            name = str(described.get("dtype") or described.get("torch_dtype") or "bf16")
        if name not in DTYPES:
            raise ModelFailed(f"weights of type {name!r} are not supported; set `weights`")
        return name

    @property
    def decoder(self) -> DecoderConfig:
        return DecoderConfig.parse(self.manifest.model.get("config") or {})

    @property
    def bytes(self) -> int:
        """What its weights take, all ranks together."""
        width = 1 if self.dtype == "int8" else DTYPES[self.dtype].itemsize
        return width * sum(math.prod(t.shape) for t in self.manifest.tensors.values())


def tier_of(reading: Reading, world: int, held: int, *, alike: bool) -> Tier:
    """`held`: bytes of the version that serves, on one rank. `alike`: only its weights differ from
    that. Raises NoRoom."""
    device = torch.device(reading.device)
    apart = device.type != "cpu"
    free = Room(room(device), host_room() if apart else room(device), apart)
    return choose(reading.bytes // world, held, free, alike=alike and world == 1)


def read_whole(reading: Reading, cancelled: Callable[[], bool]) -> Network:
    """On one device."""
    network = choose_network(
        reading.decoder,
        dtype=DTYPES[reading.dtype],
        device=reading.device,
        page_size=reading.page_size,
        int8=reading.dtype == "int8",
    )
    return _filled(network, reading, cancelled)


def read_twin(reading: Reading, cancelled: Callable[[], bool]) -> Network:
    """In the host's memory, in the layout of the device: to be exchanged with what is there."""
    network = DecoderNetwork(
        reading.decoder,
        dtype=DTYPES[reading.dtype],
        device="cpu",
        int8=reading.dtype == "int8",
        packs=False,
    )
    return _filled(network, reading, cancelled)


def read_part(
    reading: Reading,
    rank: int,
    world: int,
    group: dist.ProcessGroup,
    cancelled: Callable[[], bool],
) -> Network:
    """One rank's part; ranks have devices one after the other."""
    device = torch.device(reading.device)
    if device.type == "cuda":
        device = torch.device("cuda", (device.index or 0) + rank)
    network = choose_network(
        reading.decoder,
        dtype=DTYPES[reading.dtype],
        device=device,
        page_size=reading.page_size,
        rank=rank,
        world=world,
        group=group,
        int8=reading.dtype == "int8",
    )
    return _filled(network, reading, cancelled)


def _filled(network: ChosenNetwork, reading: Reading, cancelled: Callable[[], bool]) -> Network:
    with _aside(network.device):
        pace = Pace(reading.bytes_per_second, cancelled)
        network.load_checkpoint_(reading.folder, reading.manifest, pace)
    return network


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """On a GPU, on a stream of its own: steps of what serves would stand behind every copy. Both
    ways of it are waited for, the network's making before and the weights after."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
