"""Parameter synchronisation: what travels between replicas of the model, and when."""

from trainer.sync.choose import choose_method, refuse_mesh, replica_mesh, updated_here
from trainer.sync.method import Gradients, Method

__all__ = ["Gradients", "Method", "choose_method", "refuse_mesh", "replica_mesh", "updated_here"]
