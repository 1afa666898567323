"""A replica's TOML file, read into one frozen object.

Owns every key, its type and its default. The file comes first, then the environment
(`PENSTOCK_REPLICA_THREADS=2`), then flags (`--set threads=2`). Paths are relative to the file. It
loads no torch: a wrong file is said at once. Invariant: an unknown or wrong key is an error that
names file, key and expectation.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from backends.errors import ConfigError

PREFIX = "PENSTOCK_REPLICA_"
_UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, slots=True)
class _Key:
    """How a key's value is read: `check` gives the value to keep, or None where it is wrong."""

    expected: str
    check: Callable[[Any], Any]


def _text(value: Any) -> Any:
    return value if isinstance(value, str) and value else None


def _choice(*names: str) -> _Key:
    return _Key(f"one of {', '.join(names)}", lambda value: value if value in names else None)


def _whole(least: int, most: int) -> _Key:
    def check(value: Any) -> Any:
        good = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return value if good else None

    return _Key(f"a whole number from {least} to {most}", check)


def _number(least: float, most: float) -> _Key:
    def check(value: Any) -> Any:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if good and least <= value <= most else None

    return _Key(f"a number from {least:g} to {most:g}", check)


def _bytes(value: Any) -> Any:
    match = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", str(value).strip())
    unit = _UNITS.get(match[2].upper()) if match and not isinstance(value, bool) else None
    return int(match[1]) * unit if match and unit else None


_NAME = _Key("a name", _text)
_PATH = _Key("the path of a folder", _text)
_PLACE = _Key('the path of a folder, or a place such as "s3://bucket/runs/x"', _text)
_CLASS = _Key(
    'a class as "module:Class"',
    lambda value: value if _text(value) and re.fullmatch(r"[\w.]+:\w+", value) else None,
)
_TABLE = _Key("a table", lambda value: dict(value) if isinstance(value, dict) else None)
_FLAG = _Key("true or false", lambda value: value if isinstance(value, bool) else None)
_MEMORY = _Key('bytes, such as "4 GiB"', _bytes)
_SIZE = _Key('bytes a second, such as 200000000 or "200 MiB", 0 for no limit', _bytes)


def _key(kind: _Key, doc: str, *, name: str = "", **default: Any) -> Any:
    return field(metadata={"kind": kind, "doc": doc, "name": name}, **default)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """One replica: either it follows a channel of a run, or it serves a class as it is."""

    path: Path
    model: str = _key(_NAME, "what clients ask for")
    kind: str = _key(
        _choice("tensor", "llm"), "what is served: batches of tensors, or text", default="tensor"
    )
    run: str | None = _key(
        _PLACE, "the trainer's run: a folder, or a place on an object store", default=None
    )
    cache: str | None = _key(
        _PATH, "where a run on a store is copied to; left out, ~/.cache/penstock/runs", default=None
    )
    store: dict[str, Any] = _key(  # noqa: RUF009 - a field, as the others
        _TABLE, "the store's options, as fsspec has them", default_factory=dict[str, Any]
    )
    channel: str = _key(_NAME, "the channel of the run to follow", default="stable")
    code: str | None = _key(
        _PATH, "folder where the model's class is found; left out, this file's", default=None
    )
    class_: str | None = _key(
        _CLASS, "serve this class, without a checkpoint", name="class", default=None
    )
    config: dict[str, Any] = _key(  # noqa: RUF009 - a field, as the others
        _TABLE, "arguments of `class`", default_factory=dict[str, Any]
    )
    device: str = _key(
        _Key(
            'auto, cpu, cuda or "cuda:1"',
            lambda value: value if re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(value)) else None,
        ),
        "where the model runs; auto takes a GPU where there is one",
        default="auto",
    )
    threads: int | None = _key(
        _whole(1, 1024), "torch threads; left out, torch's own choice", default=None
    )
    slots: int = _key(_whole(1, 64), "batches that a gateway may send at a time", default=2)
    max_intake: int = _key(
        _whole(1, 10_000_000), "rows that may wait; more are refused with 429", default=4096
    )
    weights: str = _key(
        _choice("auto", "bf16", "fp16", "fp32", "int8"),
        "llm: what its weights are computed as; auto: as they were trained",
        default="auto",
    )
    pages: int | None = _key(
        _whole(2, 2**31 - 1), "llm: pages of its KV cache; or give `kv_bytes`", default=None
    )
    kv_bytes: int | None = _key(
        _MEMORY,
        "llm: size of its KV cache in each process; left out, a part of what is free",
        default=None,
    )
    page_size: int = _key(_whole(1, 1024), "llm: tokens of a page", default=16)
    max_running: int = _key(
        _whole(1, 65_536), "llm: answers that are generated together", default=64
    )
    max_waiting: int = _key(
        _whole(1, 10_000_000), "llm: requests that may wait; more are refused", default=1024
    )
    token_budget: int = _key(
        _whole(1, 1_000_000), "llm: tokens of one step, prompts and answers together", default=2048
    )
    tensor_parallel: int = _key(
        _whole(1, 64),
        "llm: processes, each with a device of its own, that compute each step together",
        default=1,
    )
    isolate: bool = _key(
        _FLAG, "llm: tenants share no cached prompts, so none can time another's", default=False
    )
    finish_s: float = _key(
        _number(0, 86_400),
        "llm: how long answers keep the version that they began with after it was replaced",
        default=60.0,
    )
    versions: int = _key(
        _whole(1, 16), "versions kept live after probation, for pins and rollback", default=1
    )
    probation_s: float = _key(
        _number(0, 86_400), "how long the old version is kept beside a new one", default=10.0
    )
    slowdown: float = _key(
        _number(1.1, 1000), "a new version slower by this factor is rolled back", default=3.0
    )
    swap: str = _key(
        _choice("ask", "auto"),
        "ask: a loaded version waits until the gateway that steers has it swapped in; auto: never",
        default="ask",
    )
    ask_s: float = _key(
        _number(0.1, 3600), "ask: a gateway silent for so long is not waited for", default=5.0
    )
    poll_s: float = _key(_number(0.01, 60), "how often the channel is looked at", default=0.25)
    load_bytes_per_second: int = _key(
        _SIZE, "bandwidth of loads beside traffic; 0 is no limit", default=2**29
    )
    memory: int | None = _key(
        _Key('bytes, such as "4 GiB"', _bytes),
        "tensor: what weights of all live versions may take on the device; left out, what is free",
        default=None,
    )
    tier: str = _key(
        _choice("auto", "beside", "exchange", "process"),
        "tensor: where a new version is loaded: on the device, on the host, in a new process",
        default="auto",
    )
    drain_s: float = _key(
        _number(0, 3600), "how long SIGTERM waits for what was accepted", default=30.0
    )
    hang_s: float = _key(
        _number(0.1, 86_400), "a batch that takes longer makes the replica unready", default=60.0
    )

    def folder(self, value: str) -> Path:
        """An absolute path; relative ones start at the file's folder."""
        return (self.path.resolve().parent / Path(value).expanduser()).resolve()


# Keys that have a meaning for one kind of replica only.
_OF_KIND = {
    "tensor": {"class", "config", "code", "slots", "max_intake", "memory", "tier"},
    "llm": {
        "weights", "pages", "kv_bytes", "page_size", "max_running", "max_waiting", "token_budget",
        "isolate", "finish_s", "tensor_parallel",
    },
}  # fmt: skip
_FIELDS = {
    item.metadata["name"] or item.name: item for item in fields(ReplicaConfig) if item.metadata
}


def describe_keys() -> str:
    """Every key with its meaning and what is expected, for `--help`."""
    lines = []
    for name, item in _FIELDS.items():
        default = "" if item.default in (MISSING, None) else f" (default {item.default})"
        lines.append(f"  {name:<22}{item.metadata['doc']}{default}")
    return "\n".join(lines)


def load(path: Path, environ: Mapping[str, str], overrides: Sequence[str] = ()) -> ReplicaConfig:
    """Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "", f"cannot be read: {error}") from error
    return parse(text, path, environ, overrides)


def parse(
    text: str, path: Path, environ: Mapping[str, str], overrides: Sequence[str] = ()
) -> ReplicaConfig:
    """Raises ConfigError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(path, "", f"this is not TOML: {error}") from error
    origins: dict[str, Path] = {}
    for origin, key, value in _overrides(path, environ, overrides):
        raw[key], origins[key] = value, origin
    values: dict[str, Any] = {"path": path}
    for key, value in raw.items():
        origin, line = origins.get(key, path), None if key in origins else _line_of(text, key)
        if key not in _FIELDS:
            raise ConfigError(origin, key, _unknown(key), line=line)
        kind: _Key = _FIELDS[key].metadata["kind"]
        checked = kind.check(value)
        if checked is None:
            raise ConfigError(origin, key, f"expected {kind.expected}, got {value!r}", line=line)
        values[_FIELDS[key].name] = checked
    for key, item in _FIELDS.items():
        required = item.default is MISSING and item.default_factory is MISSING
        if required and key not in raw:
            raise ConfigError(path, key, f"missing; expected {item.metadata['kind'].expected}")
    config = ReplicaConfig(**values)
    _check(config, raw, text)
    return config


def _overrides(
    path: Path, environ: Mapping[str, str], flags: Sequence[str]
) -> list[tuple[Path, str, Any]]:
    found = [
        (Path(f"environment variable {name}"), name.removeprefix(PREFIX).lower(), _value(text))
        for name, text in sorted(environ.items())
        if name.startswith(PREFIX)
    ]
    for flag in flags:
        key, equals, text = flag.partition("=")
        if not equals:
            raise ConfigError(path, flag, "expected KEY=VALUE, such as threads=2")
        found.append((Path(f"--set {flag}"), key.strip(), _value(text.strip())))
    return found


def _value(text: str) -> Any:
    """The TOML value that `text` writes; text that is no TOML value is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check(config: ReplicaConfig, raw: Mapping[str, Any], text: str) -> None:
    """What no single key shows."""

    def wrong(key: str, expected: str) -> ConfigError:
        return ConfigError(config.path, key, expected, line=_line_of(text, key))

    for kind, keys in _OF_KIND.items():
        for key in keys & raw.keys() if config.kind != kind else ():
            raise wrong(key, f'has a meaning only with kind = "{kind}"')
    if config.kind == "llm" and config.run is None:
        raise wrong("run", "missing; a language model is served from a channel of a run")
    if config.pages is not None and config.kv_bytes is not None:
        raise wrong("kv_bytes", "give either it or pages")
    if (config.run is None) == (config.class_ is None):
        expected = 'expected either "run" (with "channel") or "class" (with "config")'
        raise wrong("run" if config.run else "class", expected)
    for key, needs in (
        ("channel", "run"),
        ("cache", "run"),
        ("store", "run"),
        ("config", "class"),
    ):
        if key in raw and needs not in raw:
            raise wrong(key, f'has a meaning only with "{needs}"')
    for key in ("cache", "store"):
        if key in raw and "://" not in str(config.run):
            raise wrong(key, 'has a meaning only where "run" is on a store, such as "s3://…"')
    if config.code is not None and not config.folder(config.code).is_dir():
        raise wrong("code", f"there is no folder {config.folder(config.code)}")


def _line_of(text: str, key: str) -> int | None:
    found = re.search(rf"^\s*(?:\[\s*)?[\"']?{re.escape(key)}[\"']?\s*(?:=|\.|\])", text, re.M)
    return text.count("\n", 0, found.start(0)) + 1 + found[0].count("\n") if found else None


def _unknown(key: str) -> str:
    import difflib  # only when something is wrong: starting is quick

    near = difflib.get_close_matches(key, _FIELDS, 1, 0.6)
    hint = f'did you mean "{near[0]}"?' if near else f"known: {', '.join(_FIELDS)}"
    return f"unknown key; {hint}"
