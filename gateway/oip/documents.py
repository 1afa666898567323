"""What the protocol says of models, as JSON: metadata, configuration, statistics, index.

Pure functions of a ModelView or its parts. They say only what is so: clients act on each field.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from backends.wire import Signature, TensorSpec
from gateway.oip.directory import ModelView, Switchable
from gateway.oip.parameters import DEFAULT_LEVEL, PRIORITY_LEVELS
from gateway.oip.statistics import ModelStats, VersionStats
from gateway.oip.versions import steps

PLATFORM = "penstock"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "schedule_policy",
    "statistics",
)


def extensions(models: Sequence[ModelView], operations: frozenset[str]) -> list[str]:
    """`operations`: those that are acted on."""
    found = list(EXTENSIONS)
    if any(isinstance(model, Switchable) for model in models):
        found.append("model_repository")
    if {"generate", "generate_stream"} <= operations:
        found.append("generate")
    return found


def metadata(name: str, versions: Sequence[str], signature: Signature) -> dict[str, Any]:
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def call_metadata(name: str, versions: Sequence[str], surfaces: Collection[str]) -> dict[str, Any]:
    """Of a model that takes calls and no tensors. `surfaces`: their forms."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [],
        "outputs": [],
        "surfaces": sorted(surfaces),
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    # The batch is part of the shape here, and of no shape in the configuration.
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}


def configuration(name: str, signature: Signature, max_batch_size: int) -> dict[str, Any]:
    """Triton's ModelConfig, as far as it applies."""
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"all": {}},
        "max_batch_size": max_batch_size,
        "input": [
            {
                **_tensor_config(spec),
                "format": "FORMAT_NONE",
                "allow_ragged_batch": signature.ragged == "concat" and -1 in spec.shape,
                "optional": False,
            }
            for spec in signature.inputs
        ],
        "output": [_tensor_config(spec) for spec in signature.outputs],
        "dynamic_batching": {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": PRIORITY_LEVELS,
            "default_priority_level": DEFAULT_LEVEL,
        },
        "model_transaction_policy": {"decoupled": False},
    }


def call_configuration(name: str, surfaces: Collection[str]) -> dict[str, Any]:
    """The same of a model that takes calls: its replicas batch by themselves."""
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [],
        "output": [],
        "model_transaction_policy": {"decoupled": "generate_stream" in surfaces},
    }


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape)}


def statistics(name: str, stats: ModelStats, versions: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each version, zeros for one that nobody has asked yet."""
    return [
        _version_statistics(name, step, stats.versions.get(version) or VersionStats())
        for version, step in zip(versions, steps(versions), strict=True)
    ]


def _version_statistics(name: str, version: str, stats: VersionStats) -> dict[str, Any]:
    done = stats.successes
    return {
        "name": name,
        "version": version,
        "last_inference": stats.last_ms,
        "inference_count": stats.inferences,
        "execution_count": stats.executions,
        "inference_stats": {
            "success": _duration(done, stats.success_ns),
            "fail": _duration(stats.failures, stats.failure_ns),
            "queue": _duration(done, stats.queue_ns),
            # Moving tensors is not measured apart: it is what `success` has beyond queue and
            # inference, and clients show that as overhead. They refuse counts that differ.
            "compute_input": _duration(done, 0),
            "compute_infer": _duration(done, stats.compute_ns),
            "compute_output": _duration(done, 0),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(count, 0),
                "compute_infer": _duration(count, ns),
                "compute_output": _duration(count, 0),
            }
            for rows, (count, ns) in sorted(stats.batches.items())
        ],
    }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def index(models: Sequence[ModelView], *, only_ready: bool) -> list[dict[str, str]]:
    """The repository's index: a line for each version that can be asked for."""
    lines: list[dict[str, str]] = []
    for model in models:
        if model.ready:
            lines += [
                {"name": model.name, "version": version, "state": "READY", "reason": ""}
                for version in model.versions
            ]
        elif not only_ready:
            unloaded = isinstance(model, Switchable) and model.unloaded
            reason = "unloaded" if unloaded else model.reason()
            lines.append(
                {"name": model.name, "version": "", "state": "UNAVAILABLE", "reason": reason}
            )
    return lines
