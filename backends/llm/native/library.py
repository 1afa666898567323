"""Compiles `step.cpp` for this CPU, once, and calls it.

Owns the compiler's command, the cache of what came out (`~/.cache/penstock/native`) and the layout
of the two structures that the C++ reads. Invariant: what is loaded was compiled from this source,
with these flags, on a CPU with these instructions; anything else is compiled anew or not used.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from ctypes import c_double, c_int64, c_void_p
from pathlib import Path

SOURCE = Path(__file__).with_name("step.cpp")
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno")
NEEDED = {"avx512f", "avx512bw", "avx512dq"}
# It takes about three seconds; a compiler that hangs must not keep a replica from starting.
COMPILE_S = 120.0
# Of what the compiler says, so much is told of.
SAID = 300


class Map(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("scale", c_void_p), ("bias", c_void_p))


class Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, Map) for name in ("qkv", "output", "gate_up", "down")),
    )


_SIZES = ("layers", "width", "hidden", "heads", "kv_heads", "head_dim", "vocabulary")


class Model(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in _SIZES),
        ("eps", c_double),
        ("embedding", c_void_p),
        ("norm", c_void_p),
        ("head", Map),
        ("layer", ctypes.POINTER(Layer)),
    )


_COUNTS = ("tokens", "sequences", "rows", "table_width", "page_size", "pages", "threads")
_POINTERS = (
    *("token", "slot", "row", "start", "context", "table"),
    *("cosine", "sine", "keys", "values", "logits"),
)


class Step(ctypes.Structure):
    _fields_ = (*((n, c_int64) for n in _COUNTS), *((n, c_void_p) for n in _POINTERS))


class Library:
    def __init__(self, path: Path) -> None:
        """After torch is loaded: both then share one OpenMP runtime, and its threads."""
        self._step = ctypes.CDLL(str(path)).penstock_step
        self._step.argtypes = (ctypes.POINTER(Model), ctypes.POINTER(Step))
        self._step.restype = None

    def step(self, model: Model, step: Step) -> None:
        self._step(ctypes.byref(model), ctypes.byref(step))


class Unavailable(Exception):
    """Why there is no native step here, and what to do about it."""


def load(environment: Mapping[str, str] = os.environ) -> Library:
    """Raises Unavailable: torch then does the work."""
    if missing := NEEDED - _instructions():
        raise Unavailable(f"this CPU has no {', '.join(sorted(missing))}")
    name = environment.get("CXX", "g++")
    compiler = shutil.which(name)
    if compiler is None:
        raise Unavailable(f"there is no C++ compiler {name!r}: install g++, or set CXX")
    folder = _cache(environment)
    path = folder / f"step-{_fingerprint(compiler)}.so"
    try:
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, path)
        return Library(path)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{compiler} took over {COMPILE_S:.0f} s to compile it") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or b"").decode("utf-8", "replace").strip()[:SAID]
        raise Unavailable(f"{compiler} could not compile it: {said or error}") from error
    except OSError as error:
        raise Unavailable(f"{error}: XDG_CACHE_HOME may name a folder for it") from error


def _compile(compiler: str, path: Path, *more: str) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, *FLAGS, *more, "-o", str(made), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_S)
        made.replace(path)


def _cache(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "penstock" / "native"


def _fingerprint(compiler: str) -> str:
    parts = (*(file.read_text() for file in SOURCES), *FLAGS, compiler, *sorted(_instructions()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _instructions() -> frozenset[str]:
    """What the kernel says this CPU has; nothing on other systems."""
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())
