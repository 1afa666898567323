"""Which method a configuration asks for, and the mesh that a replica then sees.

Owns the choice only. Invariant: where gradients do not travel between replicas, `parallelise` is
given a mesh of one replica, so whatever shards or cuts a model works inside each as it does alone.
"""

from __future__ import annotations

from torch import nn

from trainer.config_sync import SyncConfig
from trainer.mesh import Mesh, MeshPlan
from trainer.parallel import Parallel
from trainer.sync.accumulate import Accumulate
from trainer.sync.broadcast import Broadcast
from trainer.sync.method import Gradients, Method


def refuse_mesh(config: SyncConfig, plan: MeshPlan) -> None:
    """Raises ValueError where the method cannot work on the mesh, saying which one it needs."""
    if config.method == "server" and plan.ranks > 1:
        raise ValueError(
            "a server is one process: start it without torchrun; it starts sync.workers itself, "
            "and others join by python -m trainer worker CONFIG"
        )
    if config.method == "gradients" or plan.ranks == 1:
        return
    if plan.dp_replicate == 1:
        several = "set parallel.dp_replicate = -1 and parallel.dp_shard = 1"
        raise ValueError(f"{config.method} needs replicas, and {plan} has one; {several}")


def replica_mesh(config: SyncConfig, mesh: Mesh) -> Mesh:
    """The mesh over which the model is built."""
    return mesh if config.method == "gradients" else mesh.one_replica()


def choose_method(config: SyncConfig, mesh: Mesh, parallel: Parallel) -> Method:
    """`parallel` was built over `replica_mesh`."""
    replicas = mesh.plan.dp_replicate
    if config.method == "accumulate":
        return Accumulate(parallel, config, mesh.replica, replicas, mesh.between())
    if config.method == "broadcast" and replicas > 1:
        return Broadcast(parallel, mesh.replica, replicas, mesh.between())
    return Gradients(parallel.sync)


def updated_here(sync: Method, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that this rank's optimizer steps."""
    named = dict(model.named_parameters())
    if isinstance(sync, Broadcast):
        return {name: p for name, p in named.items() if sync.roots.get(name) == sync.replica}
    return named
