"""The allotment: every sample once, nobody too far ahead, nothing lost with a worker."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.server.tickets import Desk, Terms

WORKERS = ("a", "b", "c")


@st.composite
def terms(draw):
    parts, every, rounds = (draw(st.integers(1, n)) for n in (3, 3, 5))
    batch = parts * draw(st.integers(1, 3))
    staleness = draw(st.sampled_from([0, 1, 2, None]))
    return Terms(batch, parts, every, rounds * every * batch, staleness, 10.0, draw(st.booleans()))


@given(terms(), st.integers(0, 2**32), st.booleans())
@settings(max_examples=150)
def test_every_sample_is_applied_once_whoever_leaves(terms, seed, resumes):
    random = Random(seed)
    desk, held, received, applied, now = Desk(terms), {}, [], [], 0.0
    for _ in range(20_000):
        if desk.done:
            break
        worker = random.choice(WORKERS)
        act = random.choice(["work", "work", "work", "apply", "apply", "leave"])
        if act == "leave":
            desk.leave(worker)
            held.pop(worker, None)
        elif act == "apply" and received:
            ticket = received.pop(random.randrange(len(received)))
            desk.applied(ticket)
            applied.append(ticket)
        elif act == "work" and worker in held:
            ticket = held.pop(worker)
            assert desk.receive(worker, ticket.number, random.uniform(0.1, 2)) == ticket
            assert desk.receive(worker, ticket.number, 1.0) is None
            received.append(ticket)
        elif act == "work" and (ticket := desk.ask(worker, now)) is not None:
            held[worker] = ticket
            if terms.staleness is not None:
                before = ticket.number // terms.parts - terms.staleness
                done = {t.number for t in applied}
                assert set(range(max(0, before) * terms.parts)) <= done
        if resumes and random.random() < 0.02:
            desk, held, received = Desk(terms, desk.progress()), {}, []
    assert desk.done and desk.samples == terms.end
    seen = sorted(p for t in applied for p in range(t.position, t.position + t.total))
    assert seen == list(range(terms.end))
    assert all(desk.ask(worker, now) is None for worker in WORKERS)


def test_without_staleness_rounds_are_one_after_another():
    desk = Desk(Terms(batch=4, parts=2, every=1, end=12))
    first, second = desk.ask("a", 0.0), desk.ask("b", 0.0)
    assert first is not None and second is not None
    assert (first.position, second.position, first.samples) == (0, 2, 2)
    assert desk.ask("c", 0.0) is None
    desk.receive("a", 0, 1.0)
    assert desk.ask("a", 0.0) is None  # received is not applied
    desk.receive("b", 1, 1.0)
    desk.applied(first)
    desk.applied(second)
    third = desk.ask("c", 0.0)
    assert third is not None and (third.number, third.first_step) == (2, 2)


def test_a_silent_worker_loses_its_ticket_and_its_late_delivery_is_refused():
    desk = Desk(Terms(batch=2, parts=1, every=1, end=4, lease_s=5.0))
    ticket = desk.ask("a", 0.0)
    desk.renew("a", 3.0)
    assert desk.expired(7.9) == [] and desk.expired(8.0) == ["a"]
    desk.leave("a")
    assert desk.ask("b", 8.0) == ticket
    assert desk.receive("a", 0, 1.0) is None
    assert desk.receive("b", 0, 1.0) == ticket


def test_slower_workers_take_fewer_steps():
    desk = Desk(Terms(batch=2, parts=2, every=8, end=1000, staleness=None, scaled=True))
    for worker, seconds in (("fast", 1.0), ("slow", 4.0)):
        ticket = desk.ask(worker, 0.0)
        assert ticket is not None and ticket.steps == 8
        desk.receive(worker, ticket.number, seconds)
        desk.applied(ticket)
    fast, slow = desk.ask("fast", 0.0), desk.ask("slow", 0.0)
    assert fast is not None and slow is not None
    assert (fast.steps, slow.steps) == (8, 2)
    assert slow.position == fast.position + fast.total
