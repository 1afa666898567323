"""The whole gateway as one of its workers reaches it: by asking the supervisor.

Owns the tasks of the questions under way. Pages and surfaces answer with it for all workers,
whichever one a client happens to be connected to. Invariant: every callback is called once, with an
answer or with why there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from gateway.control import ControlChannel, ControlError
from gateway.errors import GatewayError, NoReplica
from gateway.oip.directory import Done
from gateway.oip.statistics import ModelStats

# Long enough for a reload that reads a large checkpoint.
SWITCH_S = 600.0
ASK_S = 5.0


class WholeGateway:
    def __init__(self, control: ControlChannel) -> None:
        self._control = control
        self._tasks: set[asyncio.Task[None]] = set()

    async def status(self) -> dict[str, Any]:
        return await self._control.call("status")

    async def metrics(self) -> str:
        return str((await self._control.call("metrics"))["text"])

    def statistics(self, done: Callable[[Mapping[str, ModelStats] | GatewayError], None]) -> None:
        """The sums over all workers, by model."""

        async def ask() -> None:
            answer = await self._ask("statistics", ASK_S)
            if isinstance(answer, GatewayError):
                done(answer)
                return
            sums: dict[str, ModelStats] = {}
            for worker in answer["workers"]:
                for name, stats in worker.items():
                    sums.setdefault(name, ModelStats()).add(ModelStats.from_json(stats))
            done(sums)

        self._own(ask())

    def switch(self, op: str, model: str, done: Done) -> None:
        """Load or unload a model in every worker."""

        async def ask() -> None:
            answer = await self._ask(op, SWITCH_S, model=model)
            done(answer if isinstance(answer, GatewayError) else None)

        self._own(ask())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(
        self, op: str, within_s: float, **arguments: Any
    ) -> dict[str, Any] | GatewayError:
        try:
            async with asyncio.timeout(within_s):
                return await self._control.call(op, **arguments)
        except TimeoutError:
            return NoReplica(f"the gateway did not {op} within {within_s:g} s")
        except ControlError as error:
            return NoReplica(error.message)

    def _own(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
