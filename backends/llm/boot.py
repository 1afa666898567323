"""What takes time before a language-model replica can load its model: torch, the device, ranks.

Owns how a configuration becomes networks and engines. Runs in a background thread; importing this
module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from backends.checkpoint import Manifest
from backends.config import ReplicaConfig
from backends.errors import ConfigError
from backends.llm.engine import Engine
from backends.llm.loading import LlmLoader, Twin
from backends.llm.machine import Emit, Machine, VersionedEngine
from backends.llm.network import Network
from backends.llm.parallel import Crew
from backends.llm.weights import Reading, read_part, read_twin, read_whole, tier_of
from backends.tensor.boot import choose_device, holder_of, limit_threads
from backends.tensor.memory import room
from backends.tiers import Tier

# Of the memory that is free when the first network is there: on a GPU all but some room for
# activations, on a CPU what leaves other programs theirs.
GPU_SHARE, CPU_SHARE, CPU_MOST = 0.85, 0.25, 2 << 30
# Of a GPU's free memory, what is kept for a version beside the one that serves, at most.
SPARE = 0.5
# Shapes remembered, of the versions read last: more than are live together.
SHAPES = 64
# Of what a version is tried with in the host's memory: a probe is short.
TRIAL_PAGE, TRIAL_PAGES = 16, 256


def build(
    config: ReplicaConfig, deliver: Emit, crashed: Callable[[BaseException], None]
) -> tuple[LlmLoader, Machine]:
    """Raises ConfigError for a device that is not there, ModelFailed where a rank does not come."""
    limit_threads(config)
    device = choose_device(config)
    world = config.tensor_parallel
    crew: Crew | None = None
    if world > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        crew = Crew(world, read_part, backend=backend, threads=config.threads)

    def engine(
        network: Network, version: str, emit: Emit, crashed: Callable[[BaseException], None]
    ) -> VersionedEngine:
        return build_engine(config, network, held, version, emit, crashed)

    machine = Machine(engine, deliver, crashed, crew)
    held = 0
    shapes = Shapes()

    def read(
        folder: Path, manifest: Manifest, rate: int | None, cancelled: Callable[[], bool]
    ) -> Network | Twin:
        nonlocal held
        limit_threads(config)
        if crew is not None:
            crew.wait(cancelled)  # else memory is counted that is about to be free
        reading = Reading(folder, manifest, config.weights, str(device), config.page_size, rate)
        shape = f"{reading.decoder} {reading.dtype}"
        alike = shapes.alike(manifest.version, shape, machine.serving)
        if tier_of(reading, world, held, alike=alike) is Tier.EXCHANGE:
            trial = Machine(_trial_engine, lambda outputs: None, crashed)
            return Twin(read_twin(reading, cancelled), trial)
        network = read_whole(reading, cancelled) if crew is None else crew.load(reading, cancelled)
        machine.slow = getattr(network, "slow", "")
        held = reading.bytes // world
        return network

    loader = LlmLoader(
        read,
        machine,
        holder=holder_of(config.model),
        bytes_per_second=config.load_bytes_per_second,
    )
    return loader, machine


class Shapes:
    """What the versions that were read last look like."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._known)

    def alike(self, version: str, shape: str, serving: str) -> bool:
        """Whether this one, known from now on, has the shape of the one that serves."""
        self._known[version] = shape
        if len(self._known) > SHAPES:
            del self._known[next(known for known in self._known if known != serving)]
        return self._known.get(serving) == shape


def _trial_engine(
    network: Network, version: str, emit: Emit, crashed: Callable[[BaseException], None]
) -> VersionedEngine:
    """For one generation at a time, in the host's memory."""
    pages = -(-network.max_context // TRIAL_PAGE)
    return Engine(
        network,
        emit,
        pages=min(pages, TRIAL_PAGES),
        page_size=TRIAL_PAGE,
        max_running=1,
        version=version,
        crashed=crashed,
    )


def build_engine(
    config: ReplicaConfig,
    network: Network,
    held: int,
    version: str,
    emit: Emit,
    crashed: Callable[[BaseException], None],
) -> VersionedEngine:
    """`held`: bytes of the network's weights. Raises ConfigError where its cache has no room."""
    engine = Engine(
        network,
        emit,
        pages=pages_of(config, network, held),
        page_size=config.page_size,
        token_budget=config.token_budget,
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        version=version,
        isolate=config.isolate,
        crashed=crashed,
    )
    # For its own thread: OpenMP keeps the number by thread.
    engine.call(lambda: limit_threads(config))
    return engine


def pages_of(config: ReplicaConfig, network: Network, held: int) -> int:
    """How many pages the cache has. Raises ConfigError where that is less than two."""
    if config.pages is not None:
        return config.pages
    size = network.page_bytes(config.page_size)
    memory = config.kv_bytes
    if memory is None:
        free = room(network.device)
        if network.device.type == "cuda":
            # The next version wants to be loaded beside this one, unless that takes too much.
            spare = held if held < free * SPARE else 0
            memory = int((free - spare) * GPU_SHARE)
        else:
            memory = min(int(free * CPU_SHARE), CPU_MOST)
        # More than all sequences can fill is of no use but to keep prompts for longer.
        whole = -(-network.max_context // config.page_size) * size
        memory = min(memory, 4 * whole * config.max_running)
    if memory < 2 * size:
        expected = f"at least {2 * size} bytes, which are two pages of this model; got {memory}"
        raise ConfigError(config.path, "kv_bytes", expected)
    return memory // size
