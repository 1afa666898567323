"""Staging: the folder in which the ranks write a step before it is committed.

Owns the files' bytes: streamed, hashed while written, durable when the call returns. Knows nothing
of torch.distributed: each rank makes its `Part`, the caller gathers them for `commit`. Invariant: a
straggler of a dead attempt can bring nothing back: only `create` makes folders.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import xxhash
from torch import Tensor

from backends.checkpoint import trash
from backends.checkpoint.disk import open_regular
from backends.checkpoint.errors import BadRecord, Busy, StepExists
from backends.checkpoint.lease import Lease, claimed
from backends.checkpoint.manifest import FileRecord, TensorRecord, check_path
from backends.checkpoint.read import is_whole
from backends.checkpoint.reading import CHUNK
from backends.checkpoint.run import Run
from backends.checkpoint.tensors import check, dtype_name, host_bytes, layout

PREFIX = ".staging-"
SHARD = re.compile(r"model/model-\d{5}-of-(\d{5})\.safetensors")
_ATTEMPT = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank wrote; plain data that pickles."""

    rank: int
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    tensors: Mapping[str, TensorRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """What a rank hands to `commit` instead of a Part when its writing raised."""

    rank: int
    reason: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failed:
        return cls(rank, f"{type(error).__name__}: {error}")


class Staging:
    """One rank's hand on `<run>/ckpt/.staging-<step>-<attempt>/`."""

    def __init__(self, run: Run, step: int, attempt: int | str, rank: int) -> None:
        if not _ATTEMPT.fullmatch(str(attempt)):
            raise BadRecord(f"attempt {attempt!r} must be letters, digits and _")
        if not 0 <= step < 10**12:
            raise BadRecord(f"step {step} must not be negative")
        self.run, self.step, self.attempt, self.rank = run, step, str(attempt), rank
        self.folder = run.ckpt / f"{PREFIX}{step:08d}-{self.attempt}"
        # Whether a broken step of this number is to make way; `create` finds out.
        self.replaces = False
        self._lease: Lease | None = None

    def create(self) -> None:
        """Rank 0, before any rank writes. Holds a writer's lease until commit or `discard`.

        Raises StepExists if the step is committed and whole (a broken one will be replaced), Busy
        if a live process stages the same attempt, OSError when the disk fails.
        """
        run, disk = self.run, self.run.disk
        self.replaces = run.folder(self.step).exists()
        if self.replaces and is_whole(run, self.step):
            raise StepExists(f"step {self.step} is committed already in {run.root}")
        disk.make_folders(run.ckpt)
        with run.lock():
            if self.folder.name in claimed(run):
                raise Busy(f"{self.folder.name} belongs to a live process; use another attempt")
            self._lease = Lease(run, "writer", f"rank{self.rank}", self.folder.name).acquire()
            try:
                left = [trash.move(run, self.folder)] if self.folder.exists() else []
                disk.make_folder(self.folder)
                disk.make_folder(self.folder / "model")
                disk.make_folder(self.folder / "state")
            except BaseException:
                self.discard()
                raise
        trash.remove(run, left)

    def guarded(self, write: Callable[[], Part]) -> Part | Failed:
        """What `write` made, or why it failed: what this rank hands to `commit` in either case."""
        try:
            return write()
        except Exception as error:
            return Failed.of(self.rank, error)

    def write_shard(self, index: int, count: int, tensors: Mapping[str, Tensor]) -> Part:
        """Writes file `index` (from 0) of the model's `count` files in one pass.

        Holds one tensor's copy at most, and only of tensors that are strided or on a device. Raises
        BadRecord for tensors that cannot be stored, OSError when the disk fails.
        """
        if not 0 <= index < count <= 99_999:
            raise BadRecord(f"shard {index} of {count}: index counts from 0 and is below count")
        for name, tensor in tensors.items():
            check(name, tensor)
        refuse_shared(tensors)
        path = f"model/model-{index + 1:05d}-of-{count:05d}.safetensors"
        head, spans = layout(tensors)
        whole, at = xxhash.xxh3_128(head), len(head)
        records: dict[str, TensorRecord] = {}
        disk, target = self.run.disk, self.folder / path
        fd = disk.create(target)
        try:
            disk.write_all(fd, memoryview(head))
            for name, start, end in spans:
                own = xxhash.xxh3_128()
                data = host_bytes(tensors[name])
                for chunk in _chunks(data):
                    whole.update(chunk)
                    own.update(chunk)
                    disk.write_all(fd, chunk)
                shape, dtype = tuple(tensors[name].shape), dtype_name(tensors[name].dtype)
                records[name] = TensorRecord(path, start, end, shape, dtype, own.hexdigest())
                at = end
            disk.fsync(fd)
        finally:
            os.close(fd)
        disk.fsync_path(target.parent)
        return Part(self.rank, {path: FileRecord(at, whole.hexdigest())}, records)

    def write_file(self, path: str, data: bytes) -> Part:
        """Writes a small file (a tokenizer, say) at `path` below the staging folder."""
        check_path(path)
        self.run.disk.write_new(self.folder / path, data)
        self.run.disk.fsync_path((self.folder / path).parent)
        return Part(self.rank, {path: FileRecord(len(data), xxhash.xxh3_128_hexdigest(data))})

    def adopt(self, paths: Iterable[Path | str]) -> Part:
        """Hashes and syncs files, or all files in folders, that others wrote below the staging
        folder. Relative paths are relative to it. Raises BadRecord for anything outside."""
        files: dict[str, FileRecord] = {}
        folders: set[Path] = set()
        for path in paths:
            for file in _files(self.folder / path):
                relative = _relative(self.folder, file)
                files[relative] = self._adopt(relative)
                folders.add(file.parent)
        for folder in sorted(folders):
            while folder != self.folder.parent:
                self.run.disk.fsync_path(folder)
                folder = folder.parent
        return Part(self.rank, files)

    def discard(self) -> None:
        """Removes the folder and gives up the claim. Idempotent; raises nothing: what cannot be
        removed now is removed by `clean`."""
        with suppress(OSError):
            self.run.disk.remove_tree(self.folder)
        self.release()

    def release(self) -> None:
        """Gives up the claim. Idempotent."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _adopt(self, relative: str) -> FileRecord:
        fd = open_regular(self.folder, relative)
        try:
            hasher, scratch, at = xxhash.xxh3_128(), memoryview(bytearray(CHUNK)), 0
            while got := os.preadv(fd, [scratch], at):
                hasher.update(scratch[:got])
                at += got
            self.run.disk.fsync(fd)
            return FileRecord(at, hasher.hexdigest())
        finally:
            os.close(fd)


def refuse_shared(tensors: Mapping[str, Tensor]) -> None:
    """Raises BadRecord when two of the tensors share memory: a file would hold it twice, and what
    is loaded would be shared no more."""
    by_storage: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.numel():
            start, end = _span(tensor)
            device = str(tensor.device)
            by_storage[device, tensor.untyped_storage().data_ptr()].append((start, end, name))
    for spans in by_storage.values():
        spans.sort()
        for (_, end, first), (start, _, second) in pairwise(spans):
            if start < end:
                raise BadRecord(
                    f"{first} and {second} share memory or interleave; name a tie with find_ties() "
                    "and write one of them, or clone() one"
                )


def find_ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{alias: stored name} of the tensors that are the same memory seen in the same way; the first
    in the mapping's order is the one to store."""
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        if not tensor.numel():
            continue
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if first.setdefault(key, name) != name:
            ties[name] = first[key]
    return ties


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses from the tensor's first element to just past its last."""
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (reach + 1) * tensor.element_size()


def _chunks(data: memoryview) -> Iterator[memoryview]:
    for at in range(0, len(data), CHUNK):
        yield data[at : at + CHUNK]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for entry in sorted(path.iterdir()):
            yield from _files(entry)
    else:
        yield path


def _relative(folder: Path, file: Path) -> str:
    try:
        relative = file.relative_to(folder).as_posix()
    except ValueError:
        raise BadRecord(f"{file} is not below {folder}") from None
    check_path(relative)
    return relative
