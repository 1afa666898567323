"""What a run needs to go on: the model and the optimizer by name, live, staged and on disk.

Owns the names ("model.<name>", "optimizer.<slot>.<name>"), the host copy that a commit writes while
training goes on, and the resume state in a checkpoint's state/ (torch's DCP, which any mesh can
load). Steps, positions and random numbers need no state. Invariant: after `load`, every live tensor
has the bits that were staged.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist
from torch import Tensor, nn

from backends.checkpoint import Part, Staging
from trainer.average import Average
from trainer.errors import BadPlugin, RunMismatch, StateFailed
from trainer.optim import Optimizer
from trainer.shards import is_sharded, local, wrapper
from trainer.sizes import size
from trainer.sync import Method
from trainer.sync.restore import choose_sources

MODEL = "model."
EMA = "ema."
FOLDER = "state"
# How replicas were kept together.
SHAPE = "sync.shape"
LINEAGE = "trainer.json"


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a checkpoint's position and state hang on: with any of it changed, they mean nothing."""

    seed: int
    optimizer: str
    data: str
    samples: int
    origin: str = ""  # the weights that it started from, and low-rank updates


@dataclass(frozen=True, slots=True)
class Weights:
    """What a model's checkpoint holds: its tensors, and aliases of them (tied parameters)."""

    stored: dict[str, Tensor]
    ties: dict[str, str]


def weights(model: nn.Module) -> Weights:
    """Parameters and persistent buffers, live. Raises BadPlugin for state that is no tensor."""
    stored: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise BadPlugin(f"model.class: state_dict()[{name!r}] is no tensor; remove it")
        known = first.setdefault(id(value), name)
        if known != name:
            ties[name] = known
        else:
            stored[name] = value
    return Weights(stored, ties)


class TrainState:
    """The live tensors of a run. `sync` says which are the agreed ones, and what else it needs."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sync: Method,
        average: Average | None = None,
        *,
        frozen: bool = True,
    ) -> None:
        """`frozen`: whether what does not learn is kept too; not where it can be read again from
        where it came."""
        self._optimizer = optimizer
        self._model = model
        self._sync = sync
        self._average, self._frozen = average, frozen

    def weights(self) -> Weights:
        return weights(self._model)

    def tensors(self) -> dict[str, Tensor]:
        """All of them, sharded where they are, sharing memory with the live ones."""
        stored = self.weights().stored
        found = {MODEL + name: self._sync.stored(name, t).detach() for name, t in stored.items()}
        for slot, moments in self._optimizer.slots.items():
            for name, moment in moments.items():
                wrap = wrapper(self._optimizer.parameters[name])
                found[f"{self._sync.own}optimizer.{slot}.{name}"] = wrap(moment)
        if self._average is not None:
            for name, average in self._average.tensors.items():
                found[EMA + name] = wrapper(self._average.parameters[name])(average)
        return found | dict(self._sync.tensors())

    def kept(self) -> dict[str, Tensor]:
        """Those that a checkpoint's state/ has."""
        found = self.tensors()
        if self._frozen:
            return found
        stored = self.weights().stored
        still = {MODEL + n for n, t in stored.items() if not t.requires_grad}
        return {name: tensor for name, tensor in found.items() if name not in still}

    def load(self, folder: Path, step: int, group: dist.ProcessGroup | None) -> bool:
        """Overwrites the live tensors from a checkpoint's folder. Collective.

        Returns whether all were there: not if replicas were kept together in another way, or were
        others in number; they go on from the agreed parameters then.
        """
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        _expect_one_process(group)
        reader = FileSystemReader(folder / FOLDER)

        def read(tensors: dict[str, Tensor]) -> None:
            with _translated():
                load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)

        wanted, stored = self.kept(), reader.read_metadata().state_dict_metadata.keys()
        same = wanted.keys() <= stored
        if SHAPE in wanted and SHAPE in stored:  # the same on every rank, which `same` is not yet
            shape = torch.zeros_like(wanted[SHAPE])
            read({SHAPE: shape})
            same = torch.equal(shape, wanted.pop(SHAPE)) and same
        sources = choose_sources(wanted, stored, same=same)
        read({sources[name]: tensor for name, tensor in wanted.items() if name in sources})
        averages = [name for name in wanted if name.startswith(EMA)]
        if self._average is not None and not sources.keys() >= set(averages):
            self._average.restart()  # this run had none until now
        self._sync.resume(step, same)
        return same

    def align_buffers(self) -> None:
        """Gives every rank rank 0's buffers (running means, say). Collective among ranks."""
        for tensor in self.weights().stored.values():
            if not isinstance(tensor, nn.Parameter) and not is_sharded(tensor):
                dist.broadcast(tensor, src=0)


class Snapshot:
    """A copy of the live tensors in host memory, taken anew into the same memory for each commit.

    `tensors` are sharded over `mesh` as the live ones are over theirs.
    """

    def __init__(self, state: TrainState, mesh: Any) -> None:
        self._state = state
        self._kept = state.kept().keys()
        self._parts: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in state.tensors().items():
            part = local(tensor)
            pinned = part.device.type == "cuda"
            copy = torch.empty_like(part, device="cpu", pin_memory=pinned).contiguous()
            self._parts[name] = copy
            self.tensors[name] = wrapper(tensor, mesh)(copy)

    def take(self) -> None:
        """Copies; returns when the live tensors may change again."""
        parts = {name: local(tensor) for name, tensor in self._state.tensors().items()}
        for name, copy in self._parts.items():
            copy.copy_(parts[name], non_blocking=True)
        if any(part.device.type == "cuda" for part in parts.values()):
            torch.cuda.synchronize()

    def kept(self) -> dict[str, Tensor]:
        """Those that a checkpoint's state/ has."""
        return {name: self.tensors[name] for name in self._kept}

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts.values())


def save(snapshot: Snapshot, staging: Staging, group: dist.ProcessGroup | None) -> None:
    """Writes the snapshot into the staging's state/. Collective.

    One thread: with more, DCP reports a writer that failed as a success (pytorch#191391).
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    _expect_one_process(group)
    writer = FileSystemWriter(staging.folder / FOLDER, thread_count=1, sync_files=True)
    try:
        with _translated():
            dcp_save(
                snapshot.kept(), storage_writer=writer, process_group=group, no_dist=group is None
            )
    except StateFailed as error:
        # torch's writer says of a full disk only that it is elsewhere in its file than it expected.
        free = shutil.disk_usage(staging.folder).free
        if free > snapshot.nbytes:
            raise
        raise StateFailed(error.rank, f"{error.reason}; the disk has {size(free)} left") from error


@contextmanager
def _translated() -> Iterator[None]:
    """DCP's exception is no `Exception`, so that nothing which handles errors would handle it."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank = min(error.failures)
        cause = error.failures[rank][0]
        raise StateFailed(rank, f"{type(cause).__name__}: {cause}") from error


def _expect_one_process(group: dist.ProcessGroup | None) -> None:
    """DCP warns of what `no_dist` asks for."""
    if group is None:
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


def adopt(staging: Staging) -> Part:
    """Hashes and syncs what DCP wrote for this rank (and, on rank 0, for all)."""
    folder = staging.folder / FOLDER
    written = sorted(folder.glob(f"__{staging.rank}_*"))
    return staging.adopt([*written, folder / ".metadata"] if staging.rank == 0 else written)


def write_lineage(lineage: Lineage, staging: Staging) -> Part:
    text = orjson.dumps(asdict(lineage), option=orjson.OPT_INDENT_2)
    return staging.write_file(f"{FOLDER}/{LINEAGE}", text)


def check_lineage(folder: Path, lineage: Lineage) -> None:
    """Raises RunMismatch when the checkpoint belongs to another lineage."""
    found: Mapping[str, Any] = orjson.loads((folder / FOLDER / LINEAGE).read_bytes())
    for name, value in asdict(lineage).items():
        if found.get(name, "") != value:
            raise RunMismatch(
                f"{folder} was trained with {name} = {found.get(name)!r}, now it is {value!r}, so "
                "it cannot go on from there; change it back, begin again from its weights alone "
                f'(model.init = "{folder.parents[1]}@{int(folder.name[5:])}"), or start anew with '
                "run=FOLDER"
            )
