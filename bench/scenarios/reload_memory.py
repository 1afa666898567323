"""`reload-memory`: a thousand versions, one after another, in the same replicas.

A replica of tensors and one of a language model, each with a little traffic. Measured: the resident
memory of each at every tenth version; its slope after the first tenth, where room is made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import numpy as np
from rich.table import Table

from bench.following import Following, following
from bench.publisher import TEXT
from bench.record import Goal, Record
from bench.scenarios import Options, scenario

# Small models: what a reload leaves behind does not depend on their size, a thousand reloads do.
LAYERS = "1"
RELOADS, QUICK_RELOADS = 1000, 30
# Less than this a reload is no leak that anybody will see: 1 GB after 100,000.
KB_A_RELOAD = 10.0
ASK_S = 0.1


@scenario("reload-memory", "a thousand versions in the same replicas: what each leaves in memory")
def run(options: Options) -> Record:
    reloads = QUICK_RELOADS if options.quick else RELOADS
    found: dict[str, dict[str, Any]] = {}
    for name, what in (("tensors", LAYERS), ("text", TEXT)):
        with (
            following(
                options.folder / name,
                what,
                options.seed,
                replicas=1,
                swap="auto",
                probation_s=0.01,
                poll_s=0.02,
            ) as served,
            options.console.status(f"{name}: {reloads} versions ..."),
        ):
            found[name] = asyncio.run(_measure(served, reloads))
    options.console.print(_table(found))
    goals = [
        Goal.most(f"failed requests, {name}", told["failed"], 0, "") for name, told in found.items()
    ]
    if not options.quick:  # some reloads only show how memory is first taken
        goals += [
            Goal.most(f"kept of a reload, {name}", told["kb_a_reload"], KB_A_RELOAD, "KB")
            for name, told in found.items()
        ]
    return Record(
        scenario="reload-memory",
        metric=f"memory kept of a reload, after {reloads // 10} of {reloads}",
        unit="KB",
        higher_is_better=False,
        seed=options.seed,
        ours=max(told["kb_a_reload"] for told in found.values()),
        goals=goals,
        detail=found,
    )


async def _measure(served: Following, reloads: int) -> dict[str, Any]:
    """Each is published once the one before is served, so that none is passed over."""
    megabytes, asked, began = [_megabytes(served)], [0, 0], time.monotonic()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        asking = asyncio.create_task(_ask(session, served, asked))
        async with served.publishing() as publish:
            for number in range(1, reloads + 1):
                await served.until_served(await publish())
                if number % max(reloads // 100, 1) == 0:
                    megabytes.append(_megabytes(served))
        asking.cancel()
        await asyncio.wait([asking])
    return {
        "reloads": reloads,
        "seconds": time.monotonic() - began,
        "requests": asked[0],
        "failed": asked[1],
        "mb": megabytes,
        "kb_a_reload": slope_kb(megabytes, reloads),
    }


def _megabytes(served: Following) -> float:
    """Of the same processes all the time: what a new one takes says nothing of a reload."""
    found = served.megabytes()
    if found is None:
        raise RuntimeError("a replica has gone away; see its last words in the gateway's log")
    return found


async def _ask(session: aiohttp.ClientSession, served: Following, asked: list[int]) -> None:
    """Some requests, that no version is without any: how many, and how many of them failed."""
    text = {"text_input": "x", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    tensor = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}
    verb, body = ("generate", text) if served.text else ("infer", {"inputs": [tensor]})
    while True:
        asked[0] += 1
        url = f"{served.clients}/v2/models/{served.model}/{verb}"
        try:
            async with session.post(url, json=body) as reply:
                await reply.read()
                asked[1] += reply.status != 200
        except (aiohttp.ClientError, TimeoutError):
            asked[1] += 1
        await asyncio.sleep(ASK_S)


def slope_kb(megabytes: Sequence[float], reloads: int) -> float:
    """Of a line through the figures after the first tenth, which stand at equal distances."""
    rest = np.array(megabytes[max(len(megabytes) // 10, 1) :])
    each = reloads / max(len(megabytes) - 1, 1)
    return float(np.polyfit(np.arange(len(rest)) * each, rest * 1024, 1)[0])


def _table(found: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="resident memory", title_justify="left", box=None, header_style="dim")
    table.add_column("after reloads")
    for name in found:
        table.add_column(f"{name}, MB", justify="right")
    most = next(iter(found.values()))
    last = len(most["mb"]) - 1
    for share in (0.0, 0.1, 0.5, 1.0):
        at = round(share * last)
        row = [f"{told['mb'][at]:,.1f}" for told in found.values()]
        table.add_row(str(round(share * most["reloads"])), *row)
    table.add_row("KB a reload", *(f"{told['kb_a_reload']:+,.1f}" for told in found.values()))
    return table
