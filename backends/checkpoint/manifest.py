"""The manifest: a checkpoint's commit record, written last, from which everything else is checked.

Owns its form, its limits and its identity: `hash` is the xxh3-128 of its one canonical text. It
reads and writes no file. Invariant: a `Manifest` that `parse` returned names only paths inside its
folder, and byte ranges that lie inside those files, do not overlap and fit their shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import orjson

from backends.checkpoint.errors import BadRecord
from backends.checkpoint.records import canonical, digest, sealed, unseal
from backends.checkpoint.tensors import DTYPES, nbytes

SCHEMA = 1
NAME = "MANIFEST.json"
# What other loaders of safetensors folders look for.
INDEX = "model/model.safetensors.index.json"
CONFIG = "model/config.json"
# A 1T-parameter model has about 100,000 tensors, a line each; more is damage.
MAX_BYTES = 64 << 20
MAX_FILE = 1 << 50
MAX_DIMENSIONS = 64
_HASH = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"[A-Za-z0-9._+=@,-]{1,255}")

# name → (shape, dtype)
Structure = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True, slots=True)
class FileRecord:
    bytes: int
    xxh3: str


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where a tensor lies: bytes [start, end) of `file`, and their own hash."""

    file: str
    start: int
    end: int
    shape: tuple[int, ...]
    dtype: str
    xxh3: str


@dataclass(frozen=True, slots=True)
class Probe:
    """Small fixed inputs of `ServedModel.infer`, and what it answered when they were committed."""

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    rtol: float = 1e-3
    atol: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Manifest:
    schema: int = SCHEMA
    run: str
    step: int
    attempt: str
    parent: str | None
    structure_id: str
    model: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]
    # alias → the name under which the shared tensor is stored
    ties: Mapping[str, str] = field(default_factory=dict)
    position: int
    evaluation: Mapping[str, float]
    probe: Probe | None
    torch: str
    created: str

    def to_bytes(self) -> bytes:
        """The canonical text. Raises BadRecord when something in it has none."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        value["evaluation"] = {name: float(number) for name, number in self.evaluation.items()}
        value["probe"] = None if self.probe is None else asdict(self.probe)
        for key in ("evaluation", "probe", "model"):
            value[key] = _spell(value[key])
        # There and back: the seal is of plain tables, in which records have sorted keys too.
        return canonical(sealed(orjson.loads(canonical(value))))

    @cached_property
    def hash(self) -> str:
        return digest(self.to_bytes())

    @property
    def version(self) -> str:
        """What is served: "<step>-<first eight digits of the hash>"."""
        return f"{self.step}-{self.hash[:8]}"

    @property
    def total(self) -> int:
        return sum(record.bytes for record in self.files.values())

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Reads `to_bytes`. Raises BadRecord, naming the field, for anything else."""
        if len(data) > MAX_BYTES:
            raise BadRecord(f"{NAME} is larger than {MAX_BYTES} bytes")
        value = unseal(data, NAME)
        if value.get("schema") != SCHEMA:
            raise BadRecord(f"{NAME}: schema is {value.get('schema')}, this version reads {SCHEMA}")
        try:
            manifest = _build(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRecord(f"{NAME} is malformed: {error!r}") from error
        manifest.check()
        if manifest.to_bytes() != data:
            raise BadRecord(f"{NAME} is not in the form in which it was written")
        return manifest

    def check(self) -> None:
        """Raises BadRecord unless the record is consistent in itself."""
        if not 0 <= self.step < 10**12 or self.position < 0:
            raise BadRecord(f"{NAME}: step and position must not be negative")
        for path, record in self.files.items():
            check_path(path)
            if not 0 <= record.bytes <= MAX_FILE or not _HASH.fullmatch(record.xxh3):
                raise BadRecord(f"{NAME}: files[{path!r}] has a bad size or hash")
        self._check_ranges()
        for alias, name in self.ties.items():
            if alias in self.tensors or name not in self.tensors:
                raise BadRecord(f"{NAME}: ties[{alias!r}] does not name a stored tensor")
        if self.structure_id != structure_id(self.structure, self.ties, self.model):
            raise BadRecord(f"{NAME}: structure_id does not match the tensors and the model")

    def _check_ranges(self) -> None:
        ends: dict[str, int] = {}
        for name, t in sorted(self.tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            where = f"{NAME}: tensors[{name!r}]"
            if t.file not in self.files:
                raise BadRecord(f"{where}: file {t.file!r} is not listed")
            if (
                t.dtype not in DTYPES
                or len(t.shape) > MAX_DIMENSIONS
                or min(t.shape, default=0) < 0
            ):
                raise BadRecord(f"{where}: bad dtype or shape")
            if not _HASH.fullmatch(t.xxh3) or t.end - t.start != nbytes(t.shape, t.dtype):
                raise BadRecord(f"{where}: bad hash, or the byte range does not fit the shape")
            if not ends.get(t.file, 8) <= t.start <= t.end <= self.files[t.file].bytes:
                raise BadRecord(f"{where}: the byte range overlaps another or leaves the file")
            ends[t.file] = t.end

    @property
    def structure(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """name → (shape, dtype) of every tensor, aliases included."""
        stored = {name: (t.shape, t.dtype) for name, t in self.tensors.items()}
        return stored | {alias: stored[name] for alias, name in self.ties.items()}


def structure_id(structure: Structure, ties: Mapping[str, str], model: Mapping[str, Any]) -> str:
    """What two versions must share for one to take the other's place in memory."""
    table = sorted([name, list(shape), dtype] for name, (shape, dtype) in structure.items())
    return digest(canonical({"tensors": table, "ties": dict(ties), "model": _spell(model)}))


def check_path(path: str) -> None:
    """Raises BadRecord unless `path` is plainly relative and stays inside its folder."""
    parts = path.split("/")
    if len(path) > 1024 or any(p in (".", "..") or not _PART.fullmatch(p) for p in parts):
        raise BadRecord(f"path {path!r} is not a plain relative path")
    if path == NAME:
        raise BadRecord(f"{NAME} cannot list itself")


def _spell(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number becomes {"float": "nan"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {key: _spell(inner) for key, inner in value.items()}
    return [_spell(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _unspell(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {key: _unspell(inner) for key, inner in value.items()}
    return [_unspell(inner) for inner in value] if isinstance(value, list) else value


def _build(value: dict[str, Any]) -> Manifest:
    unknown = set(value) - {f.name for f in fields(Manifest)}
    if unknown:
        raise ValueError(f"unknown field {sorted(unknown)[0]}")
    for key in ("evaluation", "probe", "model"):
        value[key] = _unspell(value[key])
    probe = value["probe"]
    return Manifest(
        schema=SCHEMA,
        run=_typed(value, "run", str),
        step=_typed(value, "step", int),
        attempt=_typed(value, "attempt", str),
        parent=None if value["parent"] is None else _typed(value, "parent", str),
        structure_id=_typed(value, "structure_id", str),
        model=_typed(value, "model", dict),
        files={
            path: FileRecord(_typed(r, "bytes", int), _typed(r, "xxh3", str))
            for path, r in _typed(value, "files", dict).items()
        },
        tensors={name: _tensor(r) for name, r in _typed(value, "tensors", dict).items()},
        ties={alias: _typed(value["ties"], alias, str) for alias in _typed(value, "ties", dict)},
        position=_typed(value, "position", int),
        evaluation={k: float(v) for k, v in _typed(value, "evaluation", dict).items()},
        probe=None
        if probe is None
        else Probe(
            _typed(probe, "inputs", dict),
            _typed(probe, "outputs", dict),
            float(probe["rtol"]),
            float(probe["atol"]),
        ),
        torch=_typed(value, "torch", str),
        created=_typed(value, "created", str),
    )


def _tensor(value: dict[str, Any]) -> TensorRecord:
    shape = _typed(value, "shape", list)
    if any(type(n) is not int for n in shape):
        raise ValueError("shape must hold whole numbers")
    return TensorRecord(
        _typed(value, "file", str),
        _typed(value, "start", int),
        _typed(value, "end", int),
        tuple(shape),
        _typed(value, "dtype", str),
        _typed(value, "xxh3", str),
    )


def _typed(value: dict[str, Any], key: str, kind: type[Any]) -> Any:
    found = value[key]
    if type(found) is not kind:
        raise ValueError(f"{key} must be {kind.__name__}, got {type(found).__name__}")
    return found
