"""Tensor parallelism: one engine plans, and processes of other ranks compute the same steps.

`crew` is rank 0's side, `rank` the life of the others, `orders` what passes between them.
"""

from backends.llm.parallel.crew import Crew
from backends.llm.parallel.orders import Make

__all__ = ["Crew", "Make"]
