"""What takes time before a tensor replica can load its model: torch, the device, the first kernels.

Runs in a background thread; importing this module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from backends.config import ReplicaConfig
from backends.errors import ConfigError
from backends.tensor.executor import Answer, Batch, Executor
from backends.tensor.loading import Loader
from backends.tensor.runner import Runner
from backends.tiers import Tier


class Parts(NamedTuple):
    executor: Executor
    loader: Loader


def build(
    config: ReplicaConfig,
    *,
    post: Callable[[list[Answer], Batch | None], None],
    on_error: Callable[[BaseException, int], None],
) -> Parts:
    """Raises ConfigError for a device that is not there."""
    limit_threads(config)
    device = choose_device(config)
    runner = Runner(device, on_error)
    loader = Loader(
        code=config.folder(config.code or "."),
        device=device,
        runner=runner,
        holder=holder_of(config.model),
        bytes_per_second=config.load_bytes_per_second,
        memory=config.memory,
        tier=None if config.tier == "auto" else Tier(config.tier),
    )
    return Parts(Executor(runner, post), loader)


def limit_threads(config: ReplicaConfig) -> None:
    """For the calling thread: OpenMP keeps the number by thread, whatever torch says it is. One
    that was not told runs every small product on all cores, ten times slower."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def choose_device(config: ReplicaConfig) -> torch.device:
    wanted = config.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(config.path, "device", f"there is no {wanted} on this machine")
    return device


def holder_of(model: str) -> str:
    """The name of the replica's leases: letters, digits and . _ - only."""
    name = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in model)
    return f"replica-{name}"[:64].rstrip("-")
