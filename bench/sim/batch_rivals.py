"""The batching rules of other servers, read in their sources and written as small as they are.

Each takes its knobs as its operators set them; where a knob is a time or a size, the scenario tunes
it per load. Simplified in their favour: one queue feeds all replicas.
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf

from bench.sim.batch_workload import Cell
from bench.sim.batch_world import Decision, Request
from bench.sim.engine import stream


class Queue:
    """First come, first served, what every rule here stands on."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.waiting: deque[Request] = deque()

    def arrive(self, request: Request, now: float) -> bool:
        self.waiting.append(request)
        return True

    def ended(self, batch: list[Request], seconds: float, now: float) -> None:
        """Most learn nothing."""

    def pop(self, count: int) -> list[Request]:
        return [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))]

    def expire(self, now: float, timeout: float) -> int:
        """Drop what has waited for longer; how many."""
        waiting, before = self.waiting, len(self.waiting)
        while waiting and now - waiting[0].arrived > timeout:
            waiting.popleft()
        return before - len(waiting)


class Window(Queue):
    """TorchServe, LitServe: an idle worker takes the first item, then waits a fixed time."""

    def __init__(self, cell: Cell, window: float, timeout: float, largest: int) -> None:
        super().__init__(cell)
        self._window, self._timeout, self._largest = window, timeout, largest
        self._opened = inf

    def decide(self, now: float, free: int) -> Decision:
        dropped = self.expire(now, self._timeout)
        if not self.waiting:
            self._opened = inf
            return Decision([], dropped)
        if self._opened == inf:
            self._opened = now
        close = self._opened + self._window
        if len(self.waiting) < self._largest and now < close - 1e-12:
            return Decision([], dropped, close)
        self._opened = inf
        return Decision(self.pop(self._largest), dropped)


class Triton(Queue):
    """A free instance takes what waits as soon as a preferred or the largest size is reached, or
    the oldest has waited for the queue delay; until then the batch grows."""

    def __init__(
        self, cell: Cell, delay: float, timeout: float, largest: int, preferred: int | None = None
    ) -> None:
        super().__init__(cell)
        self._delay, self._timeout, self._largest = delay, timeout, largest
        self._preferred = preferred

    def decide(self, now: float, free: int) -> Decision:
        dropped = self.expire(now, self._timeout)
        if not self.waiting:
            return Decision([], dropped)
        if self._preferred is not None and len(self.waiting) >= self._preferred:
            fit = len(self.waiting) // self._preferred * self._preferred
            return Decision(self.pop(min(fit, self._largest)), dropped)
        due = self.waiting[0].arrived + self._delay
        if len(self.waiting) < self._largest and now < due - 1e-12:
            return Decision([], dropped, due)
        return Decision(self.pop(self._largest), dropped)


class Early(Queue):
    """Ray Serve, MLServer: a batch closes by timer or size, then waits for a free replica."""

    def __init__(self, cell: Cell, window: float, largest: int) -> None:
        super().__init__(cell)
        self._window, self._largest = window, largest
        self._closed: deque[list[Request]] = deque()

    def arrive(self, request: Request, now: float) -> bool:
        self._close(now)
        self.waiting.append(request)
        if len(self.waiting) >= self._largest:
            self._closed.append(self.pop(self._largest))
        return True

    def decide(self, now: float, free: int) -> Decision:
        self._close(now)
        if self._closed:
            return Decision(self._closed.popleft())
        return Decision([], 0, self.waiting[0].arrived + self._window if self.waiting else inf)

    def _close(self, now: float) -> None:
        """The timer runs from the first item of a batch."""
        if self.waiting and now >= self.waiting[0].arrived + self._window - 1e-12:
            self._closed.append(self.pop(self._largest))


class Mosec(Queue):
    """Idle workers all pull from one channel, each into a window of its own; what has expired is
    dropped at the pull."""

    def __init__(self, cell: Cell, window: float, largest: int) -> None:
        super().__init__(cell)
        self._window, self._largest = window, largest
        self._pullers: deque[tuple[float, list[Request]]] = deque()  # (closes, taken), in turn

    def decide(self, now: float, free: int) -> Decision:
        while len(self._pullers) < free:
            self._pullers.append((inf, []))
        dropped = 0
        ready = self._ready(now)
        while ready is None and self.waiting:
            request = self.waiting.popleft()
            if request.deadline < now:
                dropped += 1
                continue
            closes, taken = self._pullers.popleft()
            taken.append(request)
            self._pullers.append((min(closes, now + self._window), taken))
            ready = self._ready(now)
        if ready is not None:
            self._pullers.remove(ready)
            return Decision(ready[1], dropped)
        return Decision([], dropped, min((closes for closes, _ in self._pullers), default=inf))

    def _ready(self, now: float) -> tuple[float, list[Request]] | None:
        for puller in self._pullers:
            if len(puller[1]) >= self._largest or puller[0] <= now + 1e-12:
                return puller
        return None


class Bento(Queue):
    """BentoML's CORK: learns ℓ(b) = a b + b₀ and the mean past wait of heads; looks every 1 ms,
    also for a free slot; waits while the batch is worth it; drops a head that it predicts late."""

    TICK = 0.001

    def __init__(self, cell: Cell, largest: int) -> None:
        super().__init__(cell)
        self._largest, self._latency = largest, cell.slo_s
        self._waits: deque[float] = deque(maxlen=50)
        self._seen: deque[tuple[int, float]] = deque(maxlen=1000)
        self._each = self._fixed = 0.0
        self._refit_at = 0.0
        self._origin = 0.0  # its looks fall on this plus multiples of the tick

    def arrive(self, request: Request, now: float) -> bool:
        if not self.waiting:
            self._origin = now
        return super().arrive(request, now)

    def decide(self, now: float, free: int) -> Decision:
        waiting, dropped = self.waiting, 0
        look = self._origin + ceil((now - self._origin) / self.TICK - 1e-6) * self.TICK
        if waiting and look > now + 1e-9:
            return Decision([], 0, look)
        while waiting:
            n, first = len(waiting), now - waiting[0].arrived
            if n > 1 and first + self._each * n + self._fixed >= self._latency:
                waiting.popleft()
                dropped += 1
                continue
            wait = sum(self._waits) / len(self._waits) if self._waits else 0.01
            last = now - waiting[-1].arrived
            if n < self._largest and n * (last + self.TICK + self._each) <= 0.95 * wait:
                return Decision([], dropped, now + self.TICK)
            self._waits.append(first)
            self._origin = now
            return Decision(self.pop(self._largest), dropped)
        return Decision([], dropped)

    def ended(self, batch: list[Request], seconds: float, now: float) -> None:
        self._seen.append((len(batch), seconds))
        if now >= self._refit_at and len(self._seen) > 2:
            self._refit_at = now + 5.0 * self._latency  # theirs is 5 s, longer than our runs
            self._each, self._fixed = least_squares(self._seen)


class Clipper(Queue):
    """The paper's rule: additive increase of the largest batch until the deadline is exceeded,
    then 10 % less. Elapsed requests leave; nothing waits for a fuller batch."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self._largest = 1.0

    def decide(self, now: float, free: int) -> Decision:
        dropped = self.expire(now, self.cell.slo_s)
        return Decision(self.pop(int(self._largest)), dropped)

    def ended(self, batch: list[Request], seconds: float, now: float) -> None:
        if now > batch[0].deadline:
            self._largest = max(self._largest * 0.9, 1.0)
        elif len(batch) >= int(self._largest):
            self._largest = min(self._largest + 1.0, float(self.cell.largest))


class Nexus(Queue):
    """Batch and duty cycle from the profile and the rate of each replica, known to it; a head that
    the target batch would make late is dropped."""

    def __init__(self, cell: Cell, load: float) -> None:
        super().__init__(cell)
        curve, slo = cell.curve, cell.slo_s
        rate = load * cell.capacity / cell.replicas
        sizes = range(1, cell.largest + 1)
        saturated = max((b for b in sizes if curve[b] <= slo / 2.0), default=1)
        if rate * curve[saturated] >= saturated:
            self._target, self._cycle = saturated, curve[saturated]
        else:
            fit = [b for b in sizes if (b - 1) / rate + curve[b] <= slo]
            self._target = max(fit, default=1)
            self._cycle = min(slo - curve[self._target], self._target / rate)
        self._next = [0.0] * cell.replicas

    def decide(self, now: float, free: int) -> Decision:
        curve, dropped = self.cell.curve, 0
        size = min(self._target, max(len(self.waiting), 1))
        while self.waiting and self.waiting[0].deadline < now + curve[size] - 1e-9:
            self.waiting.popleft()
            dropped += 1
            size = min(self._target, max(len(self.waiting), 1))
        if not self.waiting:
            return Decision([], dropped)
        turn = min(range(len(self._next)), key=self._next.__getitem__)
        front = self.waiting[0].deadline - curve[size]
        start = min(self._next[turn], front)
        if len(self.waiting) < self._target and now < start - 1e-12:
            return Decision([], dropped, start)
        self._next[turn] = now + self._cycle
        return Decision(self.pop(self._target), dropped)


class Coin(Queue):
    """Not a rival: random legal decisions, to test the world with."""

    def __init__(self, cell: Cell, seed: int) -> None:
        super().__init__(cell)
        self._rng = stream(seed, "coin")

    def decide(self, now: float, free: int) -> Decision:
        dropped = len(self.pop(self._rng.randrange(2)))
        if not self.waiting or self._rng.random() < 0.3:
            return Decision([], dropped, now + self.cell.slo_s / 10.0 if self.waiting else inf)
        return Decision(self.pop(self._rng.randint(1, self.cell.largest)), dropped)


def least_squares(points: deque[tuple[int, float]]) -> tuple[float, float]:
    """(slope, intercept), neither negative."""
    count = len(points)
    x = sum(size for size, _ in points) / count
    y = sum(seconds for _, seconds in points) / count
    spread = sum((size - x) ** 2 for size, _ in points)
    if not spread:
        return 0.0, y
    slope = max(sum((size - x) * (seconds - y) for size, seconds in points) / spread, 0.0)
    return slope, max(y - slope * x, 0.0)
