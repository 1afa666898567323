"""The server's run: tickets out, contributions in, weights changed, evaluated and committed.

Owns the order of these, on one event loop; what takes long (a change of the weights, an evaluation,
the copy for a commit) runs in one thread at a time, while heartbeats are still heard. Invariant: no
ticket is given out while weights change, so what a worker gets is one version, whole.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from trainer.commits import Commits
from trainer.committer import Moment
from trainer.config import TrainConfig
from trainer.elastic import Stop
from trainer.errors import Diverged, WorkersFailed
from trainer.evaluate import Evaluator
from trainer.loop import Ending
from trainer.metrics import Reporter, show
from trainer.pulse import Reading
from trainer.server.arrivals import Arrival, ArrivalLog
from trainer.server.frames import PeerBroke
from trainer.server.hub import Peer
from trainer.server.keeper import Keeper
from trainer.server.layout import digest
from trainer.server.steps import Steps
from trainer.server.tickets import Ticket

# How often leases and signals are looked at.
TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class _Received:
    ticket: Ticket
    arrival: Arrival
    packed: Tensor
    metrics: dict[str, float]


class Training:
    """See `hub.Flow`. `rate` gives a step's learning rate, `check` sees the first reading."""

    def __init__(
        self,
        config: TrainConfig,
        keeper: Keeper,
        evaluator: Evaluator,
        commits: Commits,
        log: ArrivalLog,
        stop: Stop,
        reporter: Reporter,
        rate: Callable[[int], float],
        check: Callable[[Reading], None],
    ) -> None:
        self._config, self._keeper = config, keeper
        self._evaluator, self._commits, self._log = evaluator, commits, log
        self._stop, self._reporter, self._rate, self._check = stop, reporter, rate, check
        self._steps = Steps(config.data.batch_size, keeper.samples)
        self._asking: dict[str, tuple[Peer, int | None]] = {}
        self._peers: dict[str, Peer] = {}
        self._bases: dict[str, int] = {}
        self._queue: deque[_Received] = deque()
        self._news = asyncio.Event()
        self._busy = self._ended = False
        self._evaluation: dict[str, float] = {}
        self._committed = self._steps.step
        self._trouble: str | None = None

    # ------------------------------------------------------------------ what workers do (`Flow`)

    def joined(self, peer: Peer) -> None:
        self._peers[peer.name] = peer
        text = f"{peer.name} joined; {len(self._peers)} at work"
        self._reporter.event("joined", text, worker=peer.name, workers=len(self._peers))

    def left(self, peer: Peer) -> None:
        self._asking.pop(peer.name, None)
        self._bases.pop(peer.name, None)
        del self._peers[peer.name]
        self._keeper.desk.leave(peer.name)
        if not self._ended:
            text = f"{peer.name} left; {len(self._peers)} at work"
            self._reporter.event("left", text, worker=peer.name, workers=len(self._peers))
        self._distribute()

    def beat(self, peer: Peer) -> None:
        self._keeper.desk.renew(peer.name, time.monotonic())

    def asked(self, peer: Peer, have: int | None) -> None:
        if peer.name in self._bases:
            raise PeerBroke("asked with a ticket in its hands")
        self._asking[peer.name] = (peer, have)
        self._distribute()

    def pushed(self, peer: Peer, head: dict[str, Any], body: Tensor) -> None:
        number, seconds, metrics = head.get("ticket"), head.get("seconds"), head.get("metrics")
        if not isinstance(number, int) or not isinstance(seconds, float):
            raise PeerBroke("a push says its ticket and how long it took")
        if not isinstance(metrics, dict) or "loss" not in metrics:
            raise PeerBroke("a push says its loss")
        found = digest(body)
        if len(body) != self._keeper.contribution_bytes or head.get("hash") != found:
            raise PeerBroke("a contribution changed on its way")
        ticket = self._keeper.desk.receive(peer.name, number, seconds)
        base = self._bases.pop(peer.name, None)
        peer.send({"accepted": ticket is not None})
        if ticket is None or base is None:
            return
        arrival = Arrival(ticket, base, found, peer.name, seconds)
        values = {str(name): float(value) for name, value in metrics.items()}
        self._queue.append(_Received(ticket, arrival, body, values))
        self._news.set()

    def _distribute(self) -> None:
        """Answers those who wait, the longest first, as far as the bound allows."""
        if self._busy:
            return
        over = self._ended or self._keeper.desk.done
        for name, (peer, have) in list(self._asking.items()):
            ticket = None if over else self._keeper.desk.ask(name, time.monotonic())
            if ticket is not None:
                version, packed = self._keeper.packed()
                self._bases[name] = version
                head = {"ticket": ticket.row, "version": version}
                peer.send(head, None if have == version else packed)
            elif over:
                peer.send({"over": True})
            else:
                continue
            peer.asks = False
            del self._asking[name]

    # ------------------------------------------------------------------------------ the run

    async def run(self) -> Ending:
        """Until all samples are applied, or a signal. Raises Diverged or CommitFailed."""
        began, stopped = time.monotonic(), False
        while not self._keeper.desk.done and not stopped:
            await self._wait()
            while self._queue and not self._keeper.desk.done:
                await self._take(self._queue.popleft())
            if self._trouble is not None:
                await asyncio.to_thread(self._commits.settle)
                raise WorkersFailed(f"{self._trouble}. {self._commits.good_version}")
            stopped = self._stop.asked and not self._keeper.desk.done
        self._ended = True
        self._distribute()
        step = self._steps.step
        if stopped and step > self._committed:
            await self._commit(step)
        self._reporter.flush(position=self._keeper.samples, lr=self._rate(max(1, step)))
        await asyncio.to_thread(self._commits.finish)
        version, seconds = self._commits.version, time.monotonic() - began
        return Ending(step, self._keeper.samples, version, self._evaluation, stopped, seconds)

    def give_up(self, trouble: str) -> None:
        """Ends the run, unless others work on."""
        if not self._peers:
            self._trouble = trouble

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
        for name in self._keeper.desk.expired(time.monotonic()):
            self._peers[name].drop()  # `left` follows, and gives its ticket to another

    async def _take(self, received: _Received) -> None:
        if not all(math.isfinite(value) for value in received.metrics.values()):
            await asyncio.to_thread(self._commits.settle)
            loss, step = received.metrics["loss"], received.ticket.first_step
            raise Diverged(
                f"step {step}: the loss of {received.arrival.worker} is {loss:g}; it was not "
                f"applied. {self._commits.good_version}. A lower optimizer.lr, a longer "
                "schedule.warmup or optimizer.clip=1.0 may help"
            )
        self._keeper.hold(received.arrival)
        self._busy = True
        try:
            applied = await asyncio.to_thread(self._keeper.change, received.ticket, received.packed)
            for arrival in self._keeper.note(applied.tickets):
                self._log.add(arrival)
            self._steps.add(received.ticket.total, received.metrics)
            if applied.tickets:
                await self._after(applied.norm)
        finally:
            self._busy = False
        self._distribute()

    async def _after(self, norm: float) -> None:
        before = self._steps.step
        for reading in self._steps.readings(self._keeper.samples, norm):
            self._check(reading)
            position = reading.step * self._config.data.batch_size
            self._reporter.step(reading, position=position, lr=self._rate(reading.step))
        step, every = self._steps.step, self._config.checkpoint.every
        commits = self._keeper.desk.done or (every is not None and step // every > before // every)
        evaluate = self._config.evaluate.every
        if commits and step > self._committed:
            await self._commit(step)
        elif evaluate and step // evaluate > before // evaluate:
            await asyncio.to_thread(self._evaluate, step)
        self._commits.hear()

    async def _commit(self, step: int) -> None:
        await asyncio.to_thread(self._evaluate, step)
        self._keeper.prepare_commit()
        self._log.commit(step)
        moment = Moment(step, self._keeper.samples, self._evaluation)
        await asyncio.to_thread(self._commits.begin, moment)
        self._committed = step

    def _evaluate(self, step: int) -> None:
        average = self._keeper.average
        with average.shown() if average else nullcontext():
            self._evaluation = self._evaluator.run()
        text = f"step {step}  held out: {show(self._evaluation)}"
        self._reporter.event("evaluation", text, step=step, **self._evaluation)
