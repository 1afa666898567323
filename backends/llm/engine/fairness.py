"""Fair sharing between tenants by the service they got: virtual token counters.

The tenant that got least goes first; one that comes back from idleness starts no lower than the
least of those that stayed, so that idleness saves nothing up (Sheng et al., "Fairness in Serving
Large Language Models", OSDI 2024). Invariant: the counters of tenants that always have work differ
by no more than the work of one admission and the steps in flight.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

# A decode reads the weights for one token; a prompt's tokens share that. The paper's ratio.
PROMPT_WEIGHT, OUTPUT_WEIGHT = 1.0, 2.0
# Tenants without work whose counters are remembered: leaving and coming back must gain nothing.
_REMEMBERED = 1024


class Fairness:
    """A tenant has an index while it has work; `charge` by index."""

    def __init__(self) -> None:
        self.counters: NDArray[np.float64] = np.zeros(8)
        self._index: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._uses: dict[int, int] = {}
        self._free = list(range(7, -1, -1))
        self._gone: OrderedDict[str, float] = OrderedDict()

    def enter(self, tenant: str) -> int:
        """A piece of its work came; its index, the same until all its work has left."""
        index = self._index.get(tenant)
        if index is not None:
            self._uses[index] += 1
            return index
        if not self._free:
            size = len(self.counters)
            self.counters = np.concatenate([self.counters, np.zeros(size)])
            self._free = list(range(2 * size - 1, size - 1, -1))
        least = min((float(self.counters[i]) for i in self._names), default=0.0)
        index = self._free.pop()
        self._index[tenant], self._names[index], self._uses[index] = index, tenant, 1
        self.counters[index] = max(self._gone.pop(tenant, 0.0), least)
        return index

    def leave(self, index: int) -> None:
        self._uses[index] -= 1
        if self._uses[index]:
            return
        tenant = self._names.pop(index)
        del self._index[tenant], self._uses[index]
        self._free.append(index)
        self._gone[tenant] = float(self.counters[index])
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def charge_prompt(self, index: int, tokens: int) -> None:
        self.counters[index] += PROMPT_WEIGHT * tokens

    def charge_outputs(self, indices: NDArray[np.int64]) -> None:
        """One output token for each."""
        counts = np.bincount(indices, minlength=len(self.counters))
        self.counters += OUTPUT_WEIGHT * counts

    @property
    def tenants(self) -> int:
        return len(self._index)
