"""What takes time before a language-model replica can load its model: torch, the device, kernels.

Owns how a configuration becomes networks and engines. Runs in a background thread; importing this
module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from backends.checkpoint import Manifest
from backends.config import ReplicaConfig
from backends.errors import ConfigError, ModelFailed
from backends.llm.engine import Engine
from backends.llm.loading import LlmLoader
from backends.llm.machine import Emit, Machine, VersionedEngine
from backends.llm.network import Network
from backends.llm.network_choice import choose_network
from backends.models.config import DecoderConfig
from backends.tensor.boot import _device, _holder, limit_threads
from backends.tensor.memory import room

DTYPES = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32,
    "int8": torch.bfloat16,  # of the activations; the weights alone are int8
}  # fmt: skip
# Of the memory that is free when the first network is there: on a GPU all but some room for
# activations, on a CPU what leaves other programs theirs.
GPU_SHARE, CPU_SHARE, CPU_MOST = 0.85, 0.25, 2 << 30


def build(
    config: ReplicaConfig, deliver: Emit, crashed: Callable[[BaseException], None]
) -> tuple[LlmLoader, Machine]:
    """Raises ConfigError for a device that is not there."""
    limit_threads(config)
    device = _device(config)

    def engine(
        network: Network, version: str, emit: Emit, crashed: Callable[[BaseException], None]
    ) -> VersionedEngine:
        made = Engine(
            network,
            emit,
            pages=pages_of(config, network),
            page_size=config.page_size,
            token_budget=config.token_budget,
            max_running=config.max_running,
            max_waiting=config.max_waiting,
            version=version,
            isolate=config.isolate,
            crashed=crashed,
        )
        # For its own thread: OpenMP keeps the number by thread.
        made.call(lambda: limit_threads(config))
        return made

    machine = Machine(engine, deliver, crashed)

    def read(
        folder: Path, manifest: Manifest, rate: int | None, cancelled: Callable[[], bool]
    ) -> Network:
        limit_threads(config)
        return read_network(config, device, folder, manifest, rate, cancelled)

    loader = LlmLoader(
        read,
        machine,
        holder=_holder(config.model),
        bytes_per_second=config.load_bytes_per_second,
    )
    return loader, machine


def read_network(
    config: ReplicaConfig,
    device: torch.device,
    folder: Path,
    manifest: Manifest,
    rate: int | None,
    cancelled: Callable[[], bool],
) -> Network:
    """Raises OSError where there is no room, ModelFailed where it is no decoder, and what reading
    raises."""
    described = manifest.model.get("config") or {}
    dtype = config.weights
    if dtype == "auto":
        dtype = str(described.get("dtype") or described.get("torch_dtype") or "bf16")
    if dtype not in DTYPES:
        raise ModelFailed(f"weights of type {dtype!r} are not supported; set `weights`")
    stored = sum(record.end - record.start for record in manifest.tensors.values())
    free = room(device)
    if stored > free:
        raise OSError(f"it takes {stored >> 20} MiB beside the old one, {free >> 20} MiB are free")
    network = choose_network(
        DecoderConfig.parse(described),
        dtype=DTYPES[dtype],
        device=device,
        page_size=config.page_size,
        int8=dtype == "int8",
    )
    network.load_checkpoint_(folder, manifest, bytes_per_second=rate, cancelled=cancelled)
    return network


def pages_of(config: ReplicaConfig, network: Network) -> int:
    """How many pages the cache has. Raises ConfigError where that is less than two."""
    if config.pages is not None:
        return config.pages
    size = network.page_bytes(config.page_size)
    memory = config.kv_bytes
    if memory is None:
        free = room(network.device)
        on_gpu = network.device.type == "cuda"
        memory = int(free * GPU_SHARE) if on_gpu else min(int(free * CPU_SHARE), CPU_MOST)
        # More than all sequences can fill is of no use but to keep prompts for longer.
        whole = -(-network.max_context // config.page_size) * size
        memory = min(memory, 4 * whole * config.max_running)
    if memory < 2 * size:
        raise ConfigError(
            config.path, "kv_bytes", f"{memory} bytes are less than two pages of {size} bytes"
        )
    return memory // size
