"""Decides who computes how many tokens in the next step, and whose pages make room for it.

Pure: `now` comes in, a `Plan` goes out. Decodes go first, then prompts in chunks, up to a budget of
tokens; when pages run out, the youngest of the lowest priority gives its own back and is computed
again later. A step ahead may be planned while others are in flight. Invariants: who is best by
priority and age always gets on; pages of a step in flight are not given back; expired work is never
begun.
"""

from __future__ import annotations

import numpy as np

from backends.llm.engine.deadlines import Deadlines
from backends.llm.engine.fairness import Fairness
from backends.llm.engine.pages import Pages, Unsound
from backends.llm.engine.plan import Chunk, Plan
from backends.llm.engine.prefix import Prefix
from backends.llm.engine.running import Running
from backends.llm.engine.sequence import Rows, Sequence, Table
from backends.llm.engine.waiting import Waiting

# The logits of all its tokens are wanted at once: that many rows of the vocabulary's width.
LOGPROB_CHUNK = 256


class Scheduler:
    """`serving` is the version that new sequences begin under. `isolate`: tenants share no pages;
    `reuse`: those of what has ended are found again."""

    def __init__(
        self, table: Table, pages: Pages, *, budget: int, isolate: bool = False, reuse: bool = True
    ) -> None:
        assert budget >= table.rows, "every running sequence may decode in one step"
        self.table, self.pages = table, pages
        self._prefix = Prefix(table, pages, isolate=isolate, reuse=reuse)
        self._budget, self._size = budget, table.page_size
        self.serving = ""
        self.fairness = Fairness()
        self.waiting = Waiting(self.fairness)
        self.running = Running()
        self._last = ""
        # Ended, but a step in flight still writes to their pages.
        self._ending: dict[int, Sequence] = {}
        # Sources of copies in flight: held on behalf of the step.
        self._pinned = np.zeros(pages.total + 1, np.int32)
        self._deadlines = Deadlines()
        self._admitted = 0
        # Set by `plan` when it could do more if no step were in flight.
        self.short = False
        self.hit_tokens = self.prompt_total = 0
        self.preemptions = 0

    # -------------------------------------------------------------------------- what comes and goes

    def submit(self, leader: Sequence) -> None:
        """It waits, and its followers with it."""
        for sequence in leader.group:
            sequence.tenant = self.fairness.enter(sequence.generation.tenant)
            self._deadlines.add(sequence)
        self.waiting.push(leader)

    def expired(self, now: float) -> list[Sequence]:
        """Those whose time is over; `end` them before the next plan."""
        return self._deadlines.expired(now)

    def end(self, sequence: Sequence, finish: str) -> None:
        """Nothing more is computed for it; its pages go back once no step in flight uses them."""
        assert sequence.finish is None
        sequence.finish = finish
        if sequence.row < 0:
            if sequence in self.waiting:
                self.waiting.remove(sequence)
            self.fairness.leave(sequence.tenant)
            return
        row = sequence.row
        self.table.ended[row] = True
        self.running.stop(sequence)
        if self.table.inflight[row]:
            self._ending[row] = sequence
        else:
            self._give_back(sequence)

    def settle(self, plan: Plan, *, sound: bool = True) -> None:
        """The step has ended, and the tokens that it gave are in the table. `sound`: the KV that it
        wrote can be used; else whoever is `spoilt` has ended."""
        table = self.table
        table.inflight[plan.rows] -= 1
        if sound:
            self._prefix.name(plan)
        else:
            self.pages.unname(plan.filled(table))
        for source, _ in plan.copies:
            self._pinned[source] -= 1
            self.pages.release([source])
        if self._ending:
            for row in [row for row in self._ending if not table.inflight[row]]:
                self._give_back(self._ending.pop(row))

    def spoilt(self, plan: Plan) -> list[Sequence]:
        """Whom it hits when that step fails: all in it, and who began with pages that it fills."""
        filled = plan.filled(self.table)
        hit = plan.involved(self.table)
        for sequence in self.running:
            if sequence.row >= 0 and not filled.isdisjoint(self.table.pages_of(sequence.row)):
                hit += sequence.group
        return list(dict.fromkeys(hit))

    def move(self, version: str, to: str) -> list[Sequence]:
        """Sequences of that version go on under another: all is computed again. Those that are
        pinned to it are returned: `end` them. Call it while no step is in flight."""
        pinned = []
        for sequence in [s for s in self.running if s.version == version]:
            if sequence.pinned:
                pinned.append(sequence)
            elif sequence.row >= 0:  # else it went with the one that it follows
                self.preempt(sequence)
        for sequence in self.waiting:
            if sequence.version != version:
                continue
            if sequence.pinned:
                pinned += sequence.group
            else:
                for member in sequence.group:
                    member.version = to
        return pinned

    def uses(self, version: str) -> bool:
        """Whether anybody runs under it, or waits and has to."""
        ending = any(sequence.version == version for sequence in self._ending.values())
        waits = any(sequence.version == version for sequence in self.waiting)
        return version in self.running.versions or ending or waits

    # ------------------------------------------------------------------------------------ the step

    def plan(self, now: float, *, settled: bool) -> Plan | None:
        """The next step, or None when there is nothing to compute. `settled`: no step is in flight,
        so that pages can be taken away from sequences."""
        self.short = False
        self._make_way(settled)
        for version in self._turns():
            plan = self._plan(version, now, settled)
            if len(plan.rows):
                self._last = version
                self.table.inflight[plan.rows] += 1
                return plan
        return None

    def _turns(self) -> list[str]:
        """Versions that may have work; the one after the last first."""
        versions = self.running.versions
        head = self.waiting.first
        if head is not None and self._wanted(head) not in versions:
            versions.append(self._wanted(head))
        if len(versions) > 1:
            versions.sort()
            after = sum(version <= self._last for version in versions)
            versions = versions[after:] + versions[:after]
        return versions

    def _plan(self, version: str, now: float, settled: bool) -> Plan:
        table = self.table
        plan = Plan(version, self._decodes(version))
        self._find_pages(plan, settled)
        decodes = plan.decodes
        table.computed[decodes] += 1
        table.length[decodes] += 1
        self.fairness.charge_outputs(table.tenant[decodes])
        left = self._budget - len(decodes)
        for sequence in self.running.prefilling(version):
            left -= self._chunk(plan, sequence, left)
        if left and self.waiting.count:
            self._admit(plan, now, left)
        rows, sampled = decodes.tolist(), decodes.tolist()
        for chunk in plan.chunks:
            group = [chunk.row]
            if chunk.last:
                group += self._fork(chunk)
                sampled += group
            rows += group
        plan.rows = np.array(rows, np.int64)
        plan.sampled = np.array(sampled, np.int64)
        plan.after = table.computed[plan.rows]
        plan.places = table.computed[plan.sampled]
        return plan

    def _decodes(self, version: str) -> Rows:
        """Rows of which all but the last token is computed, and which may have another."""
        rows = self.running.decoding(version)
        return rows[self.table.length[rows] < self.table.limit[rows]]

    def _find_pages(self, plan: Plan, settled: bool) -> None:
        """A page of its own for what each decode writes; those that find none are left out."""
        table, pages = self.table, self.pages
        rows = plan.decodes
        block = table.computed[rows] // self._size
        fresh = block >= table.held[rows]
        page = table.pages[rows, np.minimum(block, table.held[rows] - 1)]
        needy = fresh | (pages.refs[page] - self._pinned[page] > 1)
        if not needy.any():
            return
        wanting = [s for row in rows[needy].tolist() if (s := table.sequences[row]) is not None]
        wanting.sort(key=lambda sequence: sequence.rank)
        # One with no row has been preempted for one of the others.
        left_out = [
            sequence.row
            for sequence in wanting
            if sequence.row >= 0 and not self._page_for(plan, sequence, settled)
        ]
        stays = ~table.ended[rows]
        if left_out:
            stays &= ~np.isin(rows, left_out)
        plan.decodes = rows[stays]

    def _page_for(self, plan: Plan, sequence: Sequence, settled: bool) -> bool:
        table, pages, row = self.table, self.pages, sequence.row
        block = int(table.computed[row]) // self._size
        fresh = block >= table.held[row]
        shared = int(table.pages[row, block])
        # Another that shared it has taken a copy meanwhile.
        if not fresh and pages.refs[shared] - self._pinned[shared] <= 1:
            return True
        while not pages.available:
            if not settled:
                self.short = True
                return False
            victim = self.running.worst
            self.preempt(victim)
            if victim is sequence:
                return False
        page = pages.take(1)
        if fresh:
            table.extend(row, page)
            return True
        table.pages[row, block] = page[0]
        # Its hold on the shared one passes to the step, which reads it.
        self._pinned[shared] += 1
        plan.copies.append((shared, page[0]))
        return True

    def _chunk(self, plan: Plan, sequence: Sequence, left: int) -> int:
        """The next part of a prompt, up to `left` tokens; how many it is."""
        table, row = self.table, sequence.row
        start, length = int(table.computed[row]), int(table.length[row])
        count = min(length - start, left)
        if sequence.generation.prompt_logprobs:
            count = min(count, LOGPROB_CHUNK)
        if not count:
            return 0
        stop, last = start + count, start + count == length
        echo = sequence.generation.prompt_logprobs and not sequence.prompt_done
        wanted = min(stop, sequence.prompt - 1) - start if echo else 0
        plan.chunks.append(Chunk(sequence, row, start, stop, last, sequence.group, echo, wanted))
        table.computed[row] += count
        if last:
            table.length[row] += 1
        self._prefix.promise(sequence, stop)
        return count

    def _fork(self, chunk: Chunk) -> list[int]:
        """The prompt is computed when this step ends: its choices go their own ways from here, on
        the same pages until they write to them."""
        table, leader = self.table, chunk.sequence
        for follower in leader.followers:
            self.pages.share(pages := table.pages_of(leader.row))
            table.extend(follower.row, pages)
            table.computed[follower.row] = table.computed[leader.row]
            table.length[follower.row] = table.length[leader.row]
            follower.root, follower.names = leader.root, list(leader.names)
            follower.named = int(table.computed[leader.row]) // self._size
            self.running.decode(follower)
        rows = [follower.row for follower in leader.followers]
        for sequence in leader.group:
            sequence.prompt_done = sequence.reuse = True
        leader.followers = []
        self.running.decode(leader)
        return rows

    # -------------------------------------------------------------------------------- coming to run

    def _admit(self, plan: Plan, now: float, left: int) -> None:
        """From the lines' heads, while there is room; nobody overtakes a head that finds none."""
        while left and (head := self._next(plan.version)) is not None:
            deadline = head.generation.deadline
            if deadline is not None and deadline <= now:
                return
            if not self._begin(head, plan):
                return
            left -= self._chunk(plan, head, left)

    def _next(self, version: str) -> Sequence | None:
        head = self.waiting.first
        if head is None or self._wanted(head) == version:
            return head
        return next((s for s in self.waiting.heads() if self._wanted(s) == version), None)

    def _wanted(self, sequence: Sequence) -> str:
        return sequence.version or self.serving

    def _begin(self, leader: Sequence, plan: Plan) -> bool:
        """Give it rows and pages, if there are."""
        table, pages, version = self.table, self.pages, plan.version
        if len(table.free) < len(leader.group):
            return False
        found = self._prefix.find(leader, version)
        need = self._blocks(leader) - len(found)
        unheld = int((pages.refs[found] == 0).sum())  # no more to be had once they are shared
        if pages.available - unheld < need + self._reserve():
            return False
        pages.share(found)
        self.waiting.remove(leader)
        if not leader.order:
            self._admitted += 1
            leader.order = self._admitted
        for sequence in leader.group:
            sequence.version, sequence.order = version, leader.order
            table.place(sequence)
            plan.placed.append(sequence)
        table.extend(leader.row, found + pages.take(need))
        table.computed[leader.row] = len(found) * self._size
        leader.named = len(found)
        self.running.begin(leader)
        self._account(leader, len(found) * self._size)
        return True

    def _blocks(self, sequence: Sequence) -> int:
        return -(-len(sequence.tokens) // self._size)

    def _reserve(self) -> int:
        """Pages that those who run will want within the next quarter of a page: who begins on
        their cost would be preempted soon."""
        return len(self.running) // 4

    def _account(self, leader: Sequence, cached: int) -> None:
        if leader.started:
            return  # computing it again is our doing, not the tenant's
        for sequence in leader.group:
            sequence.started, sequence.cached = True, cached
        self.prompt_total += len(leader.tokens)
        self.hit_tokens += cached
        self.fairness.charge_prompt(leader.tenant, len(leader.tokens) - cached)

    # ---------------------------------------------------------------------------------- giving way

    def _make_way(self, settled: bool) -> None:
        """A head of better priority than some that run takes their room."""
        head = self.waiting.first
        while head is not None and self.running:
            if self.running.worst_priority <= head.generation.priority or self._fits(head):
                return
            if not settled:
                self.short = True
                return
            self.preempt(self.running.worst)

    def _fits(self, leader: Sequence) -> bool:
        """Without what may be cached: an estimate on the safe side."""
        room = self.pages.available >= self._blocks(leader) + self._reserve()
        return room and len(self.table.free) >= len(leader.group)

    def preempt(self, sequence: Sequence) -> None:
        """Back to the head of its line; what it has generated stays, its pages go."""
        leader = self.running.leader(sequence)
        for member in leader.group:
            self.running.stop(member)
            self._give_back(member, ends=False)
        self.waiting.push(leader, first=True)
        self.preemptions += 1

    def _give_back(self, sequence: Sequence, *, ends: bool = True) -> None:
        table, row = self.table, sequence.row
        self.pages.release(reversed(table.pages_of(row)))
        if sequence.finish == "error":
            self.pages.unname(table.pages_of(row))
        table.held[row] = sequence.named = 0
        table.clear(row)
        if ends:
            self.fairness.leave(sequence.tenant)

    # ------------------------------------------------------------------------------------ integrity

    def check(self) -> None:
        """Raises Unsound where pages or rows are lost or held twice."""
        table = self.table
        held = [page for s in self._rowed() for page in table.pages_of(s.row)]
        pinned = np.repeat(np.arange(len(self._pinned)), self._pinned).tolist()
        self.pages.check([*held, *pinned])
        if len(table.free) + len(self._rowed()) != table.rows:
            raise Unsound(f"{len(table.free)} rows are free of {table.rows}")
        if not self.running and not self.waiting.count and not self._ending:
            if self.fairness.tenants:
                raise Unsound("a tenant without work is counted")
            if self.pages.counts.held:
                raise Unsound(f"{self.pages.counts.held} pages are held by nobody")

    def _rowed(self) -> list[Sequence]:
        return [*self.running, *self._ending.values()]
