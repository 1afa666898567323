"""What a training run is: the keys of its TOML file, checked once and frozen.

Owns every key, its default and its meaning. The file comes first, then the environment
(`PENSTOCK_TRAINER_OPTIMIZER_LR=1e-3`), then arguments (`optimizer.lr=1e-3`); the later wins. Never
loads torch. Invariant: a `TrainConfig` that exists is consistent in itself.
"""

# ruff: noqa: RUF009 - `key` and `section` make dataclass fields
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from trainer.config_balance import BalanceConfig
from trainer.config_balance import contradictions as balance_contradictions
from trainer.config_learning import (
    LoraConfig,
    OptimizerConfig,
    Rule,
    ScheduleConfig,
    SpikeConfig,
    learning_contradictions,
)
from trainer.config_source import (
    BOOLEAN,
    SIZE,
    TABLE,
    WHOLES,
    Source,
    choice,
    key,
    named,
    number,
    parsed,
    section,
    text,
    whole,
)
from trainer.config_sync import SyncConfig, contradictions, misfits
from trainer.errors import ConfigError, Problem
from trainer.gate import Gate

PREFIX = "PENSTOCK_TRAINER_"
__all__ = [
    "BalanceConfig",
    "CheckpointConfig",
    "ComputeConfig",
    "DataConfig",
    "EvaluateConfig",
    "Loaded",
    "LoraConfig",
    "MetricsConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PublishConfig",
    "Rule",
    "ScheduleConfig",
    "SpikeConfig",
    "SyncConfig",
    "TrainConfig",
    "describe",
    "load",
    "parse",
]
CLASS = text('a class as "module:Class"', r"[\w.]+:\w+")
CHANNEL = text("a name of letters, digits and . _ -", r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    class_: str | None = key(
        CLASS,
        "the model; found beside the file, or installed. With `init`, what that is of",
        name="class",
        default=None,
    )
    config: Mapping[str, Any] = key(TABLE, "arguments of the class", default_factory=dict)
    init: str | None = key(
        text("a folder"),
        'weights to start from: a Hugging Face folder, or a run such as "runs/x" or "runs/x@300"',
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    class_: str = key(CLASS, "the data; found beside the file, or installed", name="class")
    config: Mapping[str, Any] = key(TABLE, "arguments of the class", default_factory=dict)
    batch_size: int = key(whole(1), "samples in a step, over all ranks")
    micro_batch: int | None = key(
        whole(1), "samples that a rank takes at a time; more are accumulated", default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    dp_replicate: int = key(
        whole(-1), "groups of ranks that hold a copy of the model each; -1: the rest", default=1
    )
    dp_shard: int = key(
        whole(-1), "ranks that share one copy (FSDP2); -1: the rest of the ranks", default=-1
    )
    tp: int = key(
        whole(1, 1024), "ranks that cut each layer (tensor and sequence parallel)", default=1
    )
    cp: int = key(
        whole(1, 1024), "ranks that cut each sequence (context parallel); they shard too", default=1
    )
    pp: int = key(whole(1, 1024), "ranks of a pipeline, each with some of the layers", default=1)
    schedule: str = key(
        choice("1f1b", "gpipe", "interleaved"),
        "pp: in which order micro-batches go; interleaved: `chunks` stages a rank",
        default="1f1b",
    )
    chunks: int = key(whole(2, 64), "pp, interleaved: stages of each rank", default=2)
    layers: tuple[int, ...] | None = key(
        WHOLES, "pp: layers of each stage; left out, evenly dealt", default=None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeConfig:
    precision: str = key(
        choice("fp32", "bf16"), "of matrix products; weights and moments stay fp32", default="fp32"
    )
    recompute: str = key(
        choice("none", "full", "selective"),
        "activations of the blocks that backward computes again; selective: not matrix products",
        default="none",
    )
    compile: bool = key(BOOLEAN, "torch.compile, block by block", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    every: int | None = key(whole(1), "steps between commits; the last is always one", default=None)
    keep: int = key(whole(1), "newest checkpoints that stay", default=3)
    keep_every: int | None = key(whole(1), "checkpoints at its multiples stay too", default=None)
    mode: str = key(
        choice("async", "sync"), "async: training goes on while files are written", default="async"
    )
    on_failure: str = key(
        choice("continue", "stop"), "what a commit that failed means to the run", default="continue"
    )
    shard_size: int = key(SIZE, "a model file is split beyond it", default=2**30)
    dtype: str | None = key(
        choice("fp32", "bf16"), "of the weights in the model's files; as they are", default=None
    )
    probe: int = key(whole(0, 64), "held-out inputs in the manifest with their answers", default=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    every: int | None = key(
        whole(1), "steps between evaluations; each checkpoint has one anyway", default=None
    )
    batch_size: int = key(whole(1), "held-out samples that a rank takes at a time", default=256)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    tensorboard: bool = key(
        BOOLEAN, "event files in RUN/tensorboard, besides metrics.jsonl", default=False
    )
    prometheus: str | None = key(
        text('a host and a port, such as "127.0.0.1:9400"', r"[^\s:]+:\d{1,5}"),
        "where rank 0 serves the newest figures",
        default=None,
    )
    peak_tflops: float | None = key(
        number(0, 1e6, above=True),
        "of one device, for the MFU; else from its data sheet, or measured",
        default=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishConfig:
    channel: str | None = key(
        CHANNEL, "where the run's last version is published; left out, nowhere", default=None
    )
    every: int | None = key(
        whole(1), "steps between versions that are published while it trains", default=None
    )
    require: Gate = key(
        parsed('conditions such as "accuracy >= 0.97 and loss < 0.2"', Gate.parse),
        "what the evaluation must say; worse is committed, but not published",
        default=Gate(),
    )
    store: str | None = key(
        text('a place such as "s3://bucket/runs/x"', r"[a-z0-9]+://.+"),
        "an object store that gets what was published, for replicas on other machines",
        default=None,
    )
    store_options: Mapping[str, Any] = key(
        TABLE, "of the store, as fsspec has them", default_factory=dict
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The whole file. `path` is where it was read; classes are looked for in its folder."""

    run: str = key(text("the path of a folder"), "the run's folder, from the working directory")
    seed: int = key(whole(0, 2**63 - 1), "of the weights, the order and all else", default=0)
    steps: int = key(whole(1), "the step at which the run ends")
    device: str = key(
        choice("auto", "cpu", "cuda"), "auto takes a GPU where there is one", default="auto"
    )
    deterministic: bool = key(
        BOOLEAN, "only operations whose result is the same every time", default=True
    )
    log_every: int = key(whole(1), "steps between lines in metrics.jsonl", default=10)
    model: ModelConfig = section(ModelConfig)
    lora: LoraConfig = section(LoraConfig)
    data: DataConfig = section(DataConfig)
    optimizer: OptimizerConfig = section(OptimizerConfig)
    schedule: ScheduleConfig = section(ScheduleConfig)
    parallel: ParallelConfig = section(ParallelConfig)
    compute: ComputeConfig = section(ComputeConfig)
    sync: SyncConfig = section(SyncConfig)
    balance: BalanceConfig = section(BalanceConfig)
    checkpoint: CheckpointConfig = section(CheckpointConfig)
    evaluate: EvaluateConfig = section(EvaluateConfig)
    spike: SpikeConfig = section(SpikeConfig)
    metrics: MetricsConfig = section(MetricsConfig)
    publish: PublishConfig = section(PublishConfig)

    @property
    def folder(self) -> Path:
        return Path(self.run).expanduser()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and the file that it came from."""

    config: TrainConfig
    path: Path
    overrides: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """Where the classes that it names are looked for first."""
        return self.path.resolve().parent

    def error(self, name: str, fix: str) -> ConfigError:
        """For what shows only later: the number of ranks, say."""
        return ConfigError([Problem(str(self.path), None, name, fix)])


def load(path: Path, environ: Mapping[str, str], overrides: Sequence[str] = ()) -> Loaded:
    """Raises ConfigError."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        wrong = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError([Problem(str(path), None, "", wrong)]) from error
    return Loaded(parse(content, path, environ, overrides), path, tuple(overrides))


def parse(
    content: str, path: Path, environ: Mapping[str, str], overrides: Sequence[str] = ()
) -> TrainConfig:
    """Raises ConfigError."""
    source = Source(content, path)
    source.environment(TrainConfig, environ, PREFIX)
    source.arguments(overrides)
    config: TrainConfig = source.build(TrainConfig)
    for name, fix in _contradictions(config, source.tree):
        source.problem(tuple(name.split(".")), fix)
    source.refuse()
    return config


def _contradictions(config: TrainConfig, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What no single key shows, and keys that would have no effect."""
    yield from _model(config, tree)
    yield from learning_contradictions(
        config.optimizer, config.schedule, config.lora, config.spike, tree
    )
    sizes = (config.parallel.dp_replicate, config.parallel.dp_shard)
    if sizes.count(-1) > 1 or 0 in sizes:
        yield "parallel.dp_replicate", "expected a number from 1, or -1 here or in dp_shard"
    yield from _pipeline(config, tree)
    yield from contradictions(config.sync, tree.get("sync", {}))
    yield from misfits(config.sync, config.steps, config.data.batch_size)
    yield from balance_contradictions(
        config.balance,
        config.parallel.pp,
        config.parallel.layers is not None,
        config.compute.compile,
        config.sync.method,
    )
    if config.publish.require and config.publish.channel is None:
        yield "publish.require", 'guards a channel; name one with publish.channel = "stable"'
    every, commits = config.publish.every, config.checkpoint.every
    if every is not None and config.publish.channel is None:
        yield "publish.every", 'needs a channel; name one with publish.channel = "stable"'
    elif every is not None and (commits is None or every % commits):
        yield "publish.every", f"expected a multiple of checkpoint.every, which is {commits}"
    if config.publish.store and config.publish.channel is None:
        yield "publish.store", 'gets what a channel gets; name one with publish.channel = "stable"'
    if config.publish.store_options and not config.publish.store:
        yield "publish.store_options", 'has a meaning only with "store"'


def _model(config: TrainConfig, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    model = config.model
    if model.class_ is None and model.init is None:
        yield "model.class", 'missing; expected a class as "module:Class", or "init"'
    if model.class_ is None and "config" in tree.get("model", {}):
        yield (
            "model.config",
            'has a meaning only with "class"; with "init" alone, it is what that has',
        )


def _pipeline(config: TrainConfig, tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    parallel, written = config.parallel, tree.get("parallel", {})
    if parallel.pp == 1:
        for name in ("schedule", "chunks", "layers"):
            if name in written:
                yield f"parallel.{name}", "has a meaning only with parallel.pp above 1"
    elif config.data.micro_batch is None:
        yield "data.micro_batch", "a pipeline works on micro-batches; say how large they are"
    if "chunks" in written and parallel.schedule != "interleaved":
        yield "parallel.chunks", 'has a meaning only with parallel.schedule = "interleaved"'


def describe() -> str:
    """Every key with its meaning and default, for `--help`."""
    lines: list[str] = []
    for name, item in named(TrainConfig).items():
        below = item.metadata.get("section")
        if below is None:
            lines.append(_describe(name, item))
        else:
            lines += [f"  [{name}]"] + [_describe(k, i) for k, i in named(below).items()]
    return "\n".join(lines)


def _describe(name: str, item: Any) -> str:
    needed = item.default is MISSING and item.default_factory is MISSING
    left_out = item.default in (MISSING, None, Gate())
    note = " (needed)" if needed else "" if left_out else f" (default {_written(item.default)})"
    return f"    {name:<15}{item.metadata['doc']}{note}"


def _written(value: Any) -> str:
    """As the file would write it."""
    return (
        str(value).lower()
        if isinstance(value, bool)
        else str(value).replace("(", "[").replace(")", "]")
    )
