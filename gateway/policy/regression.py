"""The shape of service time: how it grows with cost, batch and tokens, learned as it is seen.

Owns a decayed ridge regression on a handful of features. It learns the shape alone: scaled so that
at the mean features it gives the mean cost, it leaves the seconds per unit of cost to whoever knows
the replica. Coefficients are never negative. Memory is fixed; reads no clock.
"""

from __future__ import annotations

from typing import NamedTuple


class Features(NamedTuple):
    """Of one request on one replica. `batch` is cost × the others in flight, per slot."""

    fixed: float
    cost: float
    batch: float
    tokens_in: float
    tokens_out: float


_SIZE = len(Features._fields)
_RIDGE = 0.004  # pull, relative to the data's, towards time proportional to cost
_LEAST = 1e-12  # cost below which errors no longer weigh more
_EVERY = 16  # observations between solutions
_DECAY = 0.97  # of old observations at each solution: 512 observations have half their weight


class Shape:
    """`value(f)` is in units of cost."""

    def __init__(self) -> None:
        self.coefficients: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0, 0.0)
        self._gram = [[0.0] * _SIZE for _ in range(_SIZE)]
        self._moments = [0.0] * _SIZE
        self._means = [0.0] * _SIZE
        self._count = 0

    def value(self, f: Features) -> float:
        a, b, c, d, e = self.coefficients
        return a * f[0] + b * f[1] + c * f[2] + d * f[3] + e * f[4]

    def observe(self, f: Features, value: float) -> None:
        """It took `value`, in units of cost. Errors count relative to the cost."""
        self._count += 1
        cost = max(f.cost, _LEAST)
        weight = 1.0 / cost / cost  # squared, a huge cost would overflow
        for i, x in enumerate(f):
            if x:
                xw = x * weight
                self._gram[i] = [g + xw * y for g, y in zip(self._gram[i], f, strict=True)]
                self._moments[i] += xw * value
        gain = max(0.01, 1.0 / self._count)
        self._means = [m + gain * (x - m) for m, x in zip(self._means, f, strict=True)]
        if self._count % _EVERY == 0:
            self._solve()
            self._gram = [[g * _DECAY for g in row] for row in self._gram]
            self._moments = [m * _DECAY for m in self._moments]

    def _solve(self) -> None:
        right = self._moments[:]
        right[1] += _RIDGE * self._gram[1][1]
        active = [i for i in range(_SIZE) if self._gram[i][i] > 0.0]
        solution = [0.0] * _SIZE
        while active:
            matrix = [[self._gram[i][j] for j in active] for i in active]
            for place in range(len(active)):
                matrix[place][place] *= 1.0 + _RIDGE
            found = _solved(matrix, [right[i] for i in active])
            lowest = min(found)
            if lowest >= 0.0:
                for place, i in enumerate(active):
                    solution[i] = found[place]
                break
            del active[found.index(lowest)]  # out, and once more: a negative part means none
        at_mean = sum(x * m for x, m in zip(solution, self._means, strict=True))
        if at_mean > 0.0:
            scale = self._means[1] / at_mean
            self.coefficients = tuple(x * scale for x in solution)


def _solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination; the ridge makes pivoting needless. Overwrites its arguments."""
    size = len(right)
    for i in range(size):
        pivot = matrix[i][i] or 1e-300
        for k in range(i + 1, size):
            factor = matrix[k][i] / pivot
            if factor:
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
                right[k] -= factor * right[i]
    for i in reversed(range(size)):
        known = sum(matrix[i][j] * right[j] for j in range(i + 1, size))
        right[i] = (right[i] - known) / (matrix[i][i] or 1e-300)
    return right
