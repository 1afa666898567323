"""The engine of a language-model replica: one thread that plans, runs and tells, step after step.

Owns the device thread, the mailbox before it and the steps in flight; it decides nothing that
`Scheduler` decides and touches no tensor. With one step ahead, the host plans step n + 1 while the
device runs step n. Invariants: every choice that was submitted gets exactly one output with a
`finish`, and an error in a step ends the sequences of that step, never the thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from queue import Empty, SimpleQueue

from backends.llm.engine import masking, outcome
from backends.llm.engine.admission import Limits, admit
from backends.llm.engine.ledger import Ledger
from backends.llm.engine.load import Meter
from backends.llm.engine.pages import Pages
from backends.llm.engine.plan import Plan
from backends.llm.engine.runner import Launched, Ran, Runner
from backends.llm.engine.scheduler import Scheduler
from backends.llm.engine.sequence import Sequence, Table
from backends.llm.engine.versions import Versions
from backends.llm.generation import EngineLoad, Generation, Output
from backends.llm.network import Network

Emit = Callable[[list[Output]], None]
# How long it has rested before it is looked over: between two requests there is better to do.
_REST_S = 0.5
# How often the load that others read is counted anew.
_LOAD_S = 0.02
# Plans without anything to do, one after the other, though something waits and nothing runs.
_STUCK = 3


class Engine:
    """`emit` and `crashed` are called on the device thread. `ahead` steps may be in flight while
    the next is planned: by default one on a GPU, none on a CPU, where nothing would overlap."""

    def __init__(
        self,
        network: Network,
        emit: Emit,
        *,
        pages: int,
        page_size: int = 16,
        token_budget: int = 2048,
        max_running: int = 256,
        max_waiting: int = 1024,
        version: str = "",
        ahead: int | None = None,
        isolate: bool = False,
        reuse: bool = True,
        crashed: Callable[[BaseException], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._emit, self._on_crash, self._clock = emit, crashed, clock
        self._limits = Limits(
            network.vocabulary, min(network.max_context, pages * page_size), max_running
        )
        self._ledger = Ledger(max_waiting)

        def scheduler(serving: str) -> Scheduler:
            table = Table(max_running, self._limits.context, page_size)
            budget = max(token_budget, max_running)
            new = Scheduler(table, Pages(pages), budget=budget, isolate=isolate, reuse=reuse)
            new.serving = serving
            return new

        self._new_scheduler, self._scheduler = scheduler, scheduler(version)
        self._runner = Runner(network, self._scheduler.table, pages)
        self._runner.add(version, network)
        self._versions = Versions(version)
        self._ahead = ahead if ahead is not None else int(network.device.type == "cuda")
        self._flight: deque[Ran] = deque()
        self._outputs: list[Output] = []
        self._mail: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._mail.put(self._runner.attach)
        self._closing, self._stuck = False, 0
        self._unchecked = False
        self._meter, self._load_at = Meter(), float("-inf")
        self._load = self._meter.load(self._scheduler)
        self._began: float | None = None
        # A daemon: a hung device must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    # -------------------------------------------------------------------------- from any thread

    @property
    def max_context(self) -> int:
        return self._limits.context

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 30.0) -> bool:
        """What is still owed ends with "error". Whether the thread has ended."""
        if self._thread.ident is None:
            self._close()
            return True
        self._mail.put(self._close)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def submit(self, generation: Generation) -> None:
        """Raises BadRequest or ContextTooLong where it can never run, Conflict where its key is
        taken, Overloaded where too many wait, NotReady at the end."""
        leader = admit(generation, self._limits)
        self._ledger.open(leader, self._scheduler.waiting.count)
        self._mail.put(lambda: self._enter(leader))

    def cancel(self, key: Hashable, choice: int | None = None) -> None:
        """All its choices, or one. What has ended meanwhile stays as it is."""
        self._mail.put(lambda: self._cancel(key, choice))

    def load(self) -> EngineLoad:
        return self._load

    def busy_s(self) -> float:
        """Seconds since the step that it runs began; 0 while it waits for work."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    def call(self, task: Callable[[], None]) -> None:
        """Run it on the device thread, between two steps."""
        self._mail.put(task)

    # Versions of the weights. They change between two steps.

    def add(self, version: str, network: Network) -> None:
        """It may be served or asked for from now on. Raises ValueError where it is live already, or
        of another structure than the pages of the cache."""
        self._runner.check(version, network)
        self._versions.add(version)
        self._mail.put(lambda: self._runner.add(version, network))

    def serve(self, version: str, done: Callable[[], None] = lambda: None) -> None:
        """New sequences run under it. Raises ValueError where it is not live."""
        self._versions.serve(version)
        self._mail.put(lambda: self._serve(version, done))

    def retire(self, version: str, deadline: float) -> None:
        """Sequences that began under it keep it until then; those left move to what serves, and are
        computed again. Those that asked for it by name end with "error"."""
        self._versions.retire(version, deadline)
        self._mail.put(lambda: None)

    def release(self, version: str, done: Callable[[], None] = lambda: None) -> None:
        """Let go of its network once nobody uses it; then `done` is called, on the device thread.
        Raises ValueError where it serves or is not live."""
        self._versions.release(version, done)
        self._mail.put(lambda: None)

    def swap(
        self,
        version: str,
        load: Callable[[Network], None],
        done: Callable[[BaseException | None], None] = lambda error: None,
    ) -> None:
        """`load` changes the weights of what serves in place: that is `version` from then on, and
        what runs is computed again under it. `load` and `done` are called on the device thread; if
        `load` raises, nothing must have changed. Raises ValueError where the version is live."""
        self._versions.check_new(version)
        self._mail.put(lambda: self._swap(version, load, done))

    # ------------------------------------------------------------------------- on the device thread

    def _run(self) -> None:
        while not self._closing:
            try:
                self._began = None
                self._read_mail()
                if self._closing:
                    return
                self._began = self._clock()
                self._advance()
            except BaseException as error:  # a defect of ours: what it hit ends, others go on
                self._crashed(error)
                self._abandon(f"{type(error).__name__}: {error}")

    def _read_mail(self) -> None:
        """What is there; waits for some when there is nothing else to do."""
        first = None
        if not self._busy:
            self._load = self._meter.load(self._scheduler)
            try:
                first = self._mail.get(timeout=self._patience())
            except Empty:
                if self._unchecked:
                    self._unchecked = False
                    self._scheduler.check()
        # No more than that: a flood of mail must not hold up the steps.
        more = self._mail.qsize()
        if first is not None:
            first()
        for _ in range(more):
            if not self._closing:
                self._mail.get_nowait()()

    @property
    def _busy(self) -> bool:
        scheduler = self._scheduler
        return bool(self._flight or scheduler.running or scheduler.waiting.count or self._outputs)

    def _patience(self) -> float | None:
        """How long to wait for mail before there is something to do without."""
        due = self._versions.next_due
        waits = [] if due is None else [max(due - self._clock(), 0.0)]
        return min([*waits, _REST_S] if self._unchecked else waits, default=None)

    def _advance(self) -> None:
        """One step: launch the next, read the one before it, sample the next."""
        now, scheduler = self._clock(), self._scheduler
        for sequence in scheduler.expired(now):
            self._end(sequence, "deadline")
        self._change_versions(now)
        settled = not self._flight
        plan = scheduler.plan(now, settled=settled)
        launched = self._launch(plan) if plan is not None else None
        self._land_until(0 if plan is None else max(self._ahead - 1, 0))
        if launched is not None:
            self._sample(launched)
        # `short`: pages must be taken from sequences, and so none may be in flight.
        self._land_until(0 if scheduler.short else self._ahead)
        stuck = settled and plan is None and not scheduler.running and scheduler.waiting.count
        self._stuck = self._stuck + 1 if stuck else 0
        if self._stuck > _STUCK:
            self._give_up()
        self._tell()
        if plan is not None:
            self._meter.step(plan, self._clock() - now)
        if now - self._load_at >= _LOAD_S:
            self._load_at, self._load = now, self._meter.load(scheduler)

    def _launch(self, plan: Plan) -> Launched | None:
        try:
            return self._runner.forward(plan)
        except BaseException as error:
            self._fail(plan, error)
            return None

    def _sample(self, launched: Launched) -> None:
        masks, failed = masking.collect(launched.plan, self._scheduler.table)
        for sequence, error in failed:
            self._end(sequence, "error", error)
        try:
            self._flight.append(self._runner.sample(launched, masks))
        except BaseException as raised:
            self._fail(launched.plan, raised)

    def _land_until(self, left: int) -> None:
        while len(self._flight) > left:
            self._land(self._flight.popleft())

    def _land(self, ran: Ran) -> None:
        """Read what a step gave."""
        try:
            outputs, ended = outcome.read(ran, self._scheduler.table)
        except BaseException as error:
            self._fail(ran.plan, error)
            return
        self._outputs += outputs
        for sequence, finish in ended:
            self._close_choice(sequence, finish)
        self._scheduler.settle(ran.plan)

    def _fail(self, plan: Plan, error: BaseException) -> None:
        """The step has failed: so have its sequences, and nothing that it wrote is used."""
        self._crashed(error)
        for sequence in self._scheduler.spoilt(plan):
            if sequence.finish is None:
                self._end(sequence, "error", f"{type(error).__name__}: {error}")
        self._scheduler.settle(plan, sound=False)

    # ------------------------------------------------------------------------------------ versions

    def _serve(self, version: str, done: Callable[[], None]) -> None:
        self._scheduler.serving = version
        done()

    def _change_versions(self, now: float) -> None:
        for version in self._versions.due(now):
            self._move(version, self._scheduler.serving)
        for version, done in self._versions.leaving(lambda version: not self._uses(version)):
            self._runner.drop(version)
            self._scheduler.pages.forget(version)
            done()

    def _move(self, version: str, to: str) -> None:
        self._land_until(0)
        for sequence in self._scheduler.move(version, to):
            self._end(sequence, "error", f"version {version} is not live here any more")

    def _swap(
        self,
        version: str,
        load: Callable[[Network], None],
        done: Callable[[BaseException | None], None],
    ) -> None:
        old = self._scheduler.serving
        self._land_until(0)
        try:
            self._runner.swap(old, version, load)
        except BaseException as error:
            done(error)
            return
        self._versions.swap(old, version)
        self._move(old, version)
        self._scheduler.pages.forget(old)
        self._scheduler.serving = version
        done(None)

    def _uses(self, version: str) -> bool:
        flying = any(ran.plan.version == version for ran in self._flight)
        return flying or self._scheduler.uses(version)

    # ------------------------------------------------------------------------------ ends of choices

    def _enter(self, leader: Sequence) -> None:
        self._ledger.enter(leader)
        self._unchecked = True
        version = leader.generation.version
        # `max_tokens` 0: nothing is wanted but the prompt's logprobs, if they are.
        if leader.limit == leader.prompt and not leader.generation.prompt_logprobs:
            self._refuse(leader, "length")
        elif version is not None and not self._versions.takes(version):
            self._refuse(leader, "error", f"version {version} is not live here")
        else:
            self._scheduler.submit(leader)

    def _refuse(self, leader: Sequence, finish: str, error: str = "") -> None:
        """Of all its choices, the scheduler never sees one."""
        for sequence in leader.group:
            sequence.finish = finish
            self._outputs.append(outcome.last(sequence, finish, error))
        self._ledger.settle(leader)

    def _cancel(self, key: Hashable, choice: int | None) -> None:
        for sequence in self._ledger.live(key):
            if choice is None or sequence.choice == choice:
                if choice is None or sequence.prompt_done:
                    self._end(sequence, "cancelled")
                else:  # until the prompt is computed, its choices are one
                    self.cancel(key, choice)

    def _end(self, sequence: Sequence, finish: str, error: str = "") -> None:
        self._outputs.append(outcome.last(sequence, finish, error))
        self._close_choice(sequence, finish)

    def _close_choice(self, sequence: Sequence, finish: str) -> None:
        """Its last output is among those to be told."""
        if sequence.row >= 0:
            known = self._scheduler.table.known[sequence.row]
            self._meter.choice(int(known) - sequence.prompt)
        self._scheduler.end(sequence, finish)
        self._ledger.settle(sequence)

    def _give_up(self) -> None:
        """Nothing runs, and yet the first finds no room: it never will. No path leads here, and
        none must end in a request that hangs."""
        for sequence in next(self._scheduler.waiting.heads()).group:
            self._end(sequence, "error", "there is no room for it, though nothing runs")

    def _tell(self) -> None:
        outputs, self._outputs = self._outputs, []
        if outputs:
            try:
                self._emit(outputs)
            except BaseException as error:  # the caller's defect; the others' tokens go on
                self._crashed(error)

    def _crashed(self, error: BaseException) -> None:
        with suppress(Exception):
            self._on_crash(error)

    # ----------------------------------------------------------------------------------------- end

    def _close(self) -> None:
        self._closing = True
        self._ledger.close()
        self._land_until(0)
        self._abandon("the replica ends")

    def _abandon(self, error: str) -> None:
        """Everything that is owed ends; unless it was the last, the scheduler begins anew, with an
        empty cache."""
        for sequence in self._ledger.owed():
            sequence.finish = "error"
            self._outputs.append(outcome.last(sequence, "error", error))
            self._ledger.settle(sequence)
        self._tell()
        if not self._closing:
            self._flight.clear()
            self._scheduler = self._new_scheduler(self._scheduler.serving)
            self._runner.begin(self._scheduler.table)
