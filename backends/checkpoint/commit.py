"""The commit: turns what the ranks staged into a step, at once or not at all.

Owns the checks, the manifest and the order of the last operations: index, config and manifest
durable, then one rename, then LATEST. Knows nothing of torch.distributed: rank 0 calls it with what
every rank handed in. Invariant: when it raises, the step is not there and nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import torch

from backends.checkpoint import trash
from backends.checkpoint.errors import CommitAborted
from backends.checkpoint.manifest import (
    CONFIG,
    INDEX,
    NAME,
    FileRecord,
    Manifest,
    Probe,
    TensorRecord,
    structure_id,
)
from backends.checkpoint.records import digest, seal
from backends.checkpoint.staging import SHARD, Failed, Part, Staging
from backends.checkpoint.tensors import dtype_name

# name → (shape, dtype) of every tensor that the model has, aliases included
Expected = Mapping[str, tuple[Sequence[int], torch.dtype | str]]


def commit(
    staging: Staging,
    parts: Sequence[Part | Failed | BaseException],
    *,
    ranks: int | None = None,
    model: Mapping[str, Any],
    expected: Expected,
    position: int,
    evaluation: Mapping[str, float] | None = None,
    probe: Probe | None = None,
    parent: str | None = None,
    ties: Mapping[str, str] | None = None,
) -> Manifest:
    """Commits the step, on rank 0. `model` is {"class": "module:Class", "config": {…}}.

    `parts` has at least one entry of each of the `ranks` (None: not checked); a Failed or an
    exception among them aborts. `ties` maps each alias in `expected` to the name under which its
    tensor was written. Raises CommitAborted, with the rank and the reason, after removing what was
    staged.
    """
    try:
        files, tensors = _gathered(parts)
        _check_ranks(parts, ranks)
        ties = dict(ties or {})
        table = {
            name: (tuple(shape), dtype_name(dtype)) for name, (shape, dtype) in expected.items()
        }
        _check_coverage(table, tensors, ties)
        files |= _write_texts(staging, model, tensors, files)
        _check_files(staging.folder, files)
        manifest = Manifest(
            run=staging.run.name,
            step=staging.step,
            attempt=staging.attempt,
            parent=parent,
            structure_id=structure_id(table, ties, model),
            model=model,
            files=files,
            tensors=tensors,
            ties=ties,
            position=position,
            evaluation=dict(evaluation or {}),
            probe=probe,
            torch=str(torch.__version__),
            created=datetime.fromtimestamp(staging.run.host.wall(), UTC).isoformat(),
        )
        text = manifest.to_bytes()
        # What comes back is what readers will have; it also applies their limits before theirs do.
        manifest = Manifest.parse(text)
        staging.run.disk.write_new(staging.folder / NAME, text)
        _make_visible(staging, manifest)
    except BaseException as error:
        staging.discard()
        if isinstance(error, CommitAborted):
            raise
        if isinstance(error, Exception):
            raise CommitAborted(staging.rank, f"{type(error).__name__}: {error}") from error
        raise
    staging.release()
    return manifest


def adopt(staging: Staging, manifest: Manifest, files: Mapping[str, FileRecord]) -> None:
    """Commits a copy: `files` of a step that was committed elsewhere, under its own manifest.

    Whoever wrote them has checked their bytes. Raises CommitAborted after removing what was staged.
    """
    try:
        _check_files(staging.folder, files)
        staging.run.disk.write_new(staging.folder / NAME, manifest.to_bytes())
        _make_visible(staging, manifest)
    except BaseException as error:
        staging.discard()
        if isinstance(error, Exception) and not isinstance(error, CommitAborted):
            raise CommitAborted(staging.rank, f"{type(error).__name__}: {error}") from error
        raise
    staging.release()


def _gathered(
    parts: Sequence[Part | Failed | BaseException],
) -> tuple[dict[str, FileRecord], dict[str, TensorRecord]]:
    files: dict[str, FileRecord] = {}
    tensors: dict[str, TensorRecord] = {}
    for place, part in enumerate(parts):
        if isinstance(part, BaseException):
            part = Failed.of(place, part)
        if isinstance(part, Failed):
            raise CommitAborted(part.rank, part.reason)
        for path, record in part.files.items():
            if path in files:
                raise CommitAborted(part.rank, f"{path} was written by another rank too")
            files[path] = record
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CommitAborted(
                    part.rank, f"tensor {name} is in {tensor.file} and in {tensors[name].file}"
                )
            tensors[name] = tensor
    return files, tensors


def _check_ranks(parts: Sequence[Part | Failed | BaseException], ranks: int | None) -> None:
    heard = {part.rank for part in parts if isinstance(part, Part)}
    for rank in range(ranks or 0):
        if rank not in heard:
            raise CommitAborted(rank, "nothing was handed in")
    shards = {
        match[0]: int(match[1])
        for part in parts
        if isinstance(part, Part)
        for match in map(SHARD.fullmatch, part.files)
        if match
    }
    for path, count in shards.items():
        if count != len(shards):
            raise CommitAborted(
                0, f"{path} is one of {count} files, but {len(shards)} were written"
            )


def _check_coverage(
    expected: Mapping[str, tuple[tuple[int, ...], str]],
    tensors: Mapping[str, TensorRecord],
    ties: Mapping[str, str],
) -> None:
    """Every expected tensor exactly once, as it should be, and nothing else."""
    found = {name: (record.shape, record.dtype) for name, record in tensors.items()}
    for alias, name in ties.items():
        if alias in found or name not in tensors:
            raise CommitAborted(0, f"tie {alias} → {name}: write {name} once and {alias} never")
        found[alias] = found[name]
    missing, extra = sorted(expected.keys() - found), sorted(found.keys() - expected)
    if missing:
        raise CommitAborted(0, f"{len(missing)} tensors were not written, {missing[0]} for one")
    if extra:
        raise CommitAborted(0, f"{len(extra)} tensors are not the model's, {extra[0]} for one")
    for name, form in expected.items():
        if found[name] != form:
            raise CommitAborted(0, f"tensor {name} should be {form}, was written as {found[name]}")


def _write_texts(
    staging: Staging,
    model: Mapping[str, Any],
    tensors: Mapping[str, TensorRecord],
    files: Mapping[str, FileRecord],
) -> dict[str, FileRecord]:
    """The two files that other loaders of safetensors folders look for."""
    index = {
        "metadata": {"total_size": sum(r.end - r.start for r in tensors.values())},
        "weight_map": {name: Path(tensors[name].file).name for name in sorted(tensors)},
    }
    config = dict(model.get("config") or {})
    config.setdefault("architectures", [str(model.get("class", "")).rpartition(":")[2]])
    written = {}
    for path, value in ((INDEX, index), (CONFIG, config)):
        if path in files:
            continue
        text = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        staging.run.disk.write_new(staging.folder / path, text)
        written[path] = FileRecord(len(text), digest(text))
    return written


def _check_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """What is in the folder is what the parts said, by name and size."""
    found = {
        path.relative_to(folder).as_posix(): path.lstat().st_size
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    for path, record in files.items():
        if found.get(path) != record.bytes:
            raise CommitAborted(
                0, f"{path} should have {record.bytes} bytes, has {found.get(path, 'gone')}"
            )
    stray = sorted(found.keys() - files)
    if stray:
        raise CommitAborted(0, f"{stray[0]} is in the folder, but no rank adopted it")


def _make_visible(staging: Staging, manifest: Manifest) -> None:
    run, disk = staging.run, staging.run.disk
    target = run.folder(staging.step)
    with run.lock():
        # LATEST's bytes reach the disk before the rename: after it, nothing needs room any more.
        pointer = disk.write_temporary(
            run.ckpt, seal({"step": manifest.step, "hash": manifest.hash})
        )
        moved, aside = False, None
        try:
            if target.exists():
                if not staging.replaces:
                    raise CommitAborted(staging.rank, f"step {staging.step} is committed already")
                aside = trash.move(run, target)
            disk.fsync_path(staging.folder / "model")
            disk.fsync_path(staging.folder)
            disk.rename(staging.folder, target)
            moved = True
            disk.fsync_path(run.ckpt)
            disk.rename(pointer, run.ckpt / "LATEST")
        except BaseException:
            with suppress(OSError):
                disk.unlink(pointer)
            if moved:
                with suppress(OSError):
                    disk.rename(target, staging.folder)
            raise
        # The step is durable; an old LATEST after a power loss would be only that: old.
        with suppress(OSError):
            disk.fsync_path(run.ckpt)
    if aside is not None:
        trash.remove(run, [aside])
