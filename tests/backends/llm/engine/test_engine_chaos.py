"""Everything at once, from several threads: whatever happens, each choice ends exactly once, with
tokens that are a beginning of its own, and no page is lost."""

from __future__ import annotations

import random
import threading
import time

import pytest

from backends.errors import BackendError
from backends.llm.engine import Engine
from backends.llm.generation import Generation
from tests.backends.llm.fakes import (
    VOCABULARY,
    FlakyNetwork,
    HashNetwork,
    Listener,
    ListMask,
    at_rest,
    generation,
    one_thread,
    run,
)

POISON, NAN = 59, 60
THREADS, EACH = 3, 20


def wished(key: int, chance: random.Random) -> Generation:
    """Tokens of the prompt are below those that make the network fail, but for a few."""
    length = chance.choice([1, 3, 8, 17, 40])
    prompt = [chance.randrange(3) for _ in range(length)]
    if chance.random() < 0.03:
        prompt[-1] = chance.choice([POISON, NAN])
    options: dict[str, object] = {
        "n": chance.choice([1, 1, 1, 2, 3]),
        "priority": chance.choice([0, 0, 1]),
        "tenant": chance.choice("ab"),
        "seed": key,
        "temperature": chance.choice([0.0, 1.0]),
        # So that no text of its own brings it to fail.
        "logit_bias": ((POISON, -1e9), (NAN, -1e9)),
        "logprobs": chance.choice([None, None, 1]),
        "prompt_logprobs": chance.random() < 0.1,
    }
    if chance.random() < 0.1:
        options["mask"] = lambda: ListMask([[1, 2, 3]] * 50)
    if chance.random() < 0.1:
        options["deadline"] = time.monotonic() + chance.choice([-1.0, 0.02])
    return generation(key, prompt, chance.choice([0, 1, 5, 20]), **options)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ahead", [0, 1])
def test_every_choice_ends_once_and_nothing_is_lost(ahead: int, seed: int) -> None:
    listener = Listener()
    engine = Engine(
        FlakyNetwork(poison=POISON, nan=NAN),
        listener,
        pages=24,
        page_size=4,
        max_running=6,
        max_waiting=40,
        token_budget=16,
        version="v0",
        ahead=ahead,
    )
    engine.call(one_thread)
    engine.start()
    accepted: dict[object, Generation] = {}
    lock = threading.Lock()

    def client(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        for place in range(EACH):
            each = wished(number * 1000 + place, chance)
            try:
                engine.submit(each)
            except BackendError as error:
                assert error.status == 429
                continue
            with lock:
                accepted[each.key] = each
            if chance.random() < 0.2:
                engine.cancel(number * 1000 + chance.randrange(place + 1))

    def reload() -> None:
        """The same weights under new names, so that tokens can be compared."""
        for number in range(1, 4):
            old, new = f"v{number - 1}", f"v{number}"
            engine.add(new, FlakyNetwork(poison=POISON, nan=NAN))
            engine.serve(new)
            engine.retire(old, time.monotonic() + 0.01)
            gone = threading.Event()
            engine.release(old, gone.set)
            assert gone.wait(30)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
    threads.append(threading.Thread(target=reload))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    listener.wait(sum(each.n for each in accepted.values()))
    at_rest(engine)
    assert engine.close()
    assert listener.finish.keys() == {
        (each.key, choice) for each in accepted.values() for choice in range(each.n)
    }
    finishes = {output.finish for output in listener.finish.values()}
    assert {"length", "cancelled"} <= finishes
    compare(listener, accepted)


def compare(listener: Listener, accepted: dict[object, Generation]) -> None:
    """With what each says when it has an engine to itself."""
    calm = []
    for each in accepted.values():
        if POISON in each.prompt or NAN in each.prompt:
            continue
        each.deadline = None
        calm.append(each)
    truth, _ = run(calm, HashNetwork(), reuse=False, pages=2000, max_running=200, token_budget=4096)
    for each in calm:
        for choice in range(each.n):
            told, wanted = listener.tokens[each.key, choice], truth.tokens[each.key, choice]
            assert told == wanted[: len(told)]
            end = listener.finish[each.key, choice]
            if end.finish in ("length", "stop"):
                assert told == wanted
            assert all(token < VOCABULARY for token in told)
