"""The arithmetic that differs by device: keys and values into pages, attention over pages.

`Kernels` is the seam. `PlainKernels` is torch alone, runs anywhere and is the oracle of the others.
"""

from backends.llm.attention.choice import kernels_for
from backends.llm.attention.kernels import Geometry, Kernels, KVCache, Plan
from backends.llm.attention.plain import PlainKernels

__all__ = ["Geometry", "KVCache", "Kernels", "PlainKernels", "Plan", "kernels_for"]
