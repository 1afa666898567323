"""What the machine can do: `python -m bench.generators.probe THREADS`, a JSON line of two rates.

Bytes read a second, of a tensor that no cache holds, and bf16 multiplications and additions a
second, of the best of several matrix products. Best of several tries, as a roof should be.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

READ_BYTES = 512 << 20
# Rows, inner, columns: square ones, and the shapes of a decoder's step and prefill.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (512, 1536, 576), (512, 576, 3072))
# Long enough to be timed, short enough that a quick run bears it.
TRY_S, TRIES = 0.06, 5


def best(run: Callable[[], object]) -> float:
    """The least seconds of a call, over tries of many calls each."""
    run()
    start = time.perf_counter()
    run()
    count = max(1, int(TRY_S / max(time.perf_counter() - start, 1e-6)))
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        for _ in range(count):
            run()
        found.append((time.perf_counter() - start) / count)
    return min(found)


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    large = torch.ones(READ_BYTES // 4)
    read = READ_BYTES / best(large.sum)
    products = {}
    for rows, inner, columns in PRODUCTS:
        a = torch.randn(rows, inner, dtype=torch.bfloat16)
        b = torch.randn(columns, inner, dtype=torch.bfloat16).T
        seconds = best(lambda a=a, b=b: a @ b)  # type: ignore[misc]
        products[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / seconds
    print(json.dumps({"bytes_s": read, "flops": max(products.values()), "products": products}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
