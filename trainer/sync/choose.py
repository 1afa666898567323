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
    several = "set parallel.dp_replicate = -1 and parallel.dp_shard = 1"
    if plan.dp_replicate == 1:
        raise ValueError(f"{config.method} needs replicas, and {plan} has one; {several}")
    if config.method == "broadcast" and plan.ranks != plan.dp_replicate:
        raise ValueError(f"a root needs whole parameters, which {plan} has nowhere; {several}")


def replica_mesh(config: SyncConfig, mesh: Mesh) -> Mesh:
    """The mesh over which the model is built."""
    return mesh if config.method == "gradients" else mesh.one_replica()


def choose_method(config: SyncConfig, mesh: Mesh, parallel: Parallel) -> Method:
    """`parallel` was built over `replica_mesh`."""
    if config.method == "accumulate":
        plan = mesh.plan
        return Accumulate(parallel, config, mesh.replica, plan.dp_replicate, mesh.between())
    if config.method == "broadcast" and mesh.plan.dp_replicate > 1:
        trained = {n: p for n, p in parallel.model.named_parameters() if p.requires_grad}
        return Broadcast(trained, mesh.rank, mesh.plan.ranks)
    return Gradients(parallel.sync)


def updated_here(sync: Method, model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that this rank's optimizer steps."""
    named = dict(model.named_parameters())
    if isinstance(sync, Broadcast):
        return {name: p for name, p in named.items() if sync.roots.get(name) == sync.rank}
    return named
