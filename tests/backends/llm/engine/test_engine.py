"""The engine against the slowest way to do it: one sequence at a time on an engine of its own."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import torch

from backends.errors import Conflict, NotReady, Overloaded
from backends.llm.engine import Engine
from backends.llm.errors import BadRequest, ContextTooLong
from backends.llm.generation import Output
from backends.llm.network import DecoderNetwork
from backends.models.decoder import Decoder
from tests.backends.llm.fakes import (
    VOCABULARY,
    FlakyNetwork,
    Gated,
    HashNetwork,
    Listener,
    ListMask,
    alone,
    at_rest,
    generation,
    run,
)
from tests.backends.models.shapes import config

AHEAD = pytest.mark.parametrize("ahead", [0, 1])


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[list[int]]:
    chance = random.Random(seed)
    return [
        [chance.randrange(VOCABULARY) for _ in range(chance.randint(1, longest))]
        for _ in range(count)
    ]


@AHEAD
def test_batched_equals_one_by_one_greedy(ahead: int) -> None:
    asked = [generation(i, p, 4 + i % 13) for i, p in enumerate(prompts(24))]
    together, _ = run(asked, ahead=ahead, token_budget=32, max_running=8)
    for each in asked:
        assert together.tokens[each.key, 0] == alone(each).tokens[each.key, 0]
        assert len(together.tokens[each.key, 0]) == each.sampling.max_tokens
        assert together.finish[each.key, 0].finish == "length"


@AHEAD
def test_batched_equals_one_by_one_with_a_seed(ahead: int) -> None:
    wishes: list[dict[str, Any]] = [
        {"top_p": 0.9},
        {"top_k": 5, "repetition_penalty": 1.3},
        {"frequency_penalty": 0.5, "temperature": 0.0},
        {"min_p": 0.2, "logit_bias": ((7, 3.0),)},
    ]
    asked = [
        generation(i, p, 10, **{"temperature": 0.8, "seed": i} | wishes[i % 4])
        for i, p in enumerate(prompts(16))
    ]
    together, _ = run(asked, ahead=ahead, token_budget=24, max_running=8, pages=30)
    for each in asked:
        assert together.tokens[each.key, 0] == alone(each).tokens[each.key, 0]


@AHEAD
def test_preempted_equals_not_preempted(ahead: int) -> None:
    asked = [generation(i, p, 30, temperature=1.0, seed=i) for i, p in enumerate(prompts(8))]
    roomy, _ = run(asked, ahead=ahead)
    tight, engine = run(asked, ahead=ahead, pages=20, max_running=8)
    assert engine._scheduler.preemptions > 0
    assert tight.tokens == roomy.tokens


@AHEAD
def test_chunked_prefill_equals_whole(ahead: int) -> None:
    asked = [generation(i, p, 6) for i, p in enumerate(prompts(6, longest=100))]
    whole, _ = run(asked, ahead=ahead, token_budget=2000)
    network = HashNetwork()
    chunked, _ = run(asked, network, ahead=ahead, token_budget=7, max_running=7)
    assert max(tokens for tokens, _ in network.steps) <= 7
    assert chunked.tokens == whole.tokens


@AHEAD
def test_prefix_cache_on_equals_off(ahead: int) -> None:
    shared = prompts(1, seed=5)[0] * 3
    asked = [generation(i, shared + p, 6) for i, p in enumerate(prompts(8))]
    off, engine = run(asked, ahead=ahead, reuse=False, max_running=2)
    assert engine.load().hit_tokens == 0
    on, engine = run(asked, ahead=ahead, max_running=2)
    assert engine.load().hit_tokens >= 6 * (len(shared) // 4 * 4)
    assert on.tokens == off.tokens
    assert on.finish[7, 0].cached >= len(shared) // 4 * 4


@AHEAD
def test_a_burst_with_one_prefix_computes_it_once(ahead: int) -> None:
    shared = prompts(1, seed=5)[0] * 3
    whole = len(shared) // 4 * 4
    asked = [generation(i, [*shared, *p], 6) for i, p in enumerate(prompts(12, longest=9))]
    needed = whole + sum(len(each.prompt) - whole for each in asked)
    for budget in (2000, 50):  # all in one step, and the first one's prompt over several
        network = HashNetwork()
        on, engine = run(asked, network, ahead=ahead, token_budget=budget, max_running=12)
        prompt = sum(tokens for tokens, _ in network.steps) - 12 * 5
        assert prompt <= needed
        assert engine.load().hit_tokens >= 11 * whole
        apart = HashNetwork()
        off, _ = run(asked, apart, ahead=ahead, token_budget=budget, max_running=12, reuse=False)
        assert sum(tokens for tokens, _ in apart.steps) >= prompt + 11 * whole
        assert on.tokens == off.tokens


@AHEAD
def test_choices_that_share_pages_equal_choices_of_their_own(ahead: int) -> None:
    for prompt in prompts(5, seed=3):
        asked = generation("n", prompt, 9, n=4, temperature=1.2, seed=11)
        shared, _ = run([asked], ahead=ahead, token_budget=8, max_running=4)
        off, _ = run([asked], ahead=ahead, reuse=False, pages=400)
        tight, _ = run([asked], ahead=ahead, pages=-(-(len(prompt) + 9) // 4))
        assert shared.tokens == off.tokens == tight.tokens
        assert len({tuple(tokens) for tokens in shared.tokens.values()}) == 4


def test_a_decoder_says_the_same_whatever_way_it_is_asked() -> None:
    torch.manual_seed(5)
    model = Decoder(**config("qwen3")).eval().requires_grad_(False)

    def network() -> DecoderNetwork:
        made = DecoderNetwork(model.config, dtype=torch.float32)
        made.load_(model.state_dict())
        return made

    shared = prompts(1, seed=9, longest=30)[0]
    asked = [generation(i, shared + p[:9], 7) for i, p in enumerate(prompts(5))]
    asked.append(generation("n", shared, 7, n=3, temperature=1.0, seed=3))
    roomy, _ = run(asked, network(), reuse=False, max_running=8)
    for options in ({"ahead": 1}, {"pages": 20}, {"pages": 24, "ahead": 1}, {"max_running": 3}):
        listener, _ = run(asked, network(), token_budget=9, **{"max_running": 8} | options)
        assert listener.tokens == roomy.tokens


# ------------------------------------------------------------------------------------- how it ends


@AHEAD
def test_stop_ids_end_a_choice_and_are_no_part_of_it(ahead: int) -> None:
    whole = alone(generation("a", [1, 2, 3], 20)).tokens["a", 0]
    stop = whole[7]
    first = whole.index(stop)
    many = frozenset({stop, *(t for t in range(VOCABULARY) if t not in whole)})
    for stops in (frozenset({stop}), many):
        listener, _ = run([generation("a", [1, 2, 3], 20, stop_ids=stops)], ahead=ahead)
        assert listener.tokens["a", 0] == whole[:first]
        assert listener.finish["a", 0].finish == "stop"
        assert listener.finish["a", 0].tokens == ()


def test_min_tokens_puts_the_stop_off() -> None:
    whole = alone(generation("a", [1, 2, 3], 20)).tokens["a", 0]
    options = {"stop_ids": frozenset({whole[0]}), "min_tokens": 5}
    listener = alone(generation("a", [1, 2, 3], 20, **options))
    tokens = listener.tokens["a", 0]
    assert len(tokens) >= 5 and whole[0] not in tokens[:5]


@AHEAD
def test_the_context_ends_a_choice(ahead: int) -> None:
    listener, engine = run(
        [generation("a", [1] * 30, 100)], HashNetwork(max_context=40), ahead=ahead
    )
    assert engine.max_context == 40
    assert len(listener.tokens["a", 0]) == 10
    assert listener.finish["a", 0].finish == "length"


def test_max_tokens_0_computes_nothing_or_the_prompt() -> None:
    network = HashNetwork()
    listener = alone(generation("a", [1, 2, 3], 0), network)
    assert listener.tokens["a", 0] == [] and listener.finish["a", 0].finish == "length"
    assert network.steps == []
    each = generation("a", [1, 2, 3], 0, prompt_logprobs=True, logprobs=1)
    output = alone(each).finish["a", 0]
    assert output.finish == "length" and output.tokens == ()
    assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == 3


@AHEAD
def test_cancel_gives_the_pages_back_within_a_step(ahead: int) -> None:
    network, listener = Gated(), Listener()
    engine = Engine(network, listener, pages=32, page_size=4, ahead=ahead)
    engine.start()
    engine.submit(generation("a", [1] * 9, 500, n=2))
    network.let(3)
    listener.wait_tokens("a", 1)
    engine.cancel("a")
    engine.cancel("nobody")
    network.let(3)
    listener.wait(2)
    at_rest(engine)
    assert {output.finish for output in listener.finish.values()} == {"cancelled"}
    assert engine.load().pages_free + engine.load().pages_cached == 32
    assert engine.close()


@AHEAD
def test_one_choice_can_be_cancelled_alone(ahead: int) -> None:
    network, listener = Gated(), Listener()
    engine = Engine(network, listener, pages=32, page_size=4, ahead=ahead)
    engine.start()
    engine.submit(generation("a", [1] * 9, 20, n=2, seed=3, temperature=1.0))
    network.let(3)
    listener.wait_tokens("a", 1)
    engine.cancel("a", 1)
    network.let(40)
    listener.wait(2)
    assert listener.finish["a", 0].finish == "length" and len(listener.tokens["a", 0]) == 20
    assert listener.finish["a", 1].finish == "cancelled" and len(listener.tokens["a", 1]) < 20
    at_rest(engine)
    assert engine.load().pages_free + engine.load().pages_cached == 32
    assert engine.close()


@AHEAD
@pytest.mark.parametrize("choice", [0, 2])
def test_one_choice_may_be_cancelled_before_it_began_or_later(ahead: int, choice: int) -> None:
    network, listener = Gated(), Listener()
    each = generation("a", [1] * 9, 6, n=3, temperature=1.0, seed=4)
    engine = Engine(
        network, listener, pages=32, page_size=4, ahead=ahead, token_budget=4, max_running=4
    )
    engine.start()
    engine.submit(each)
    assert network.entered.acquire(timeout=30)
    engine.cancel("a", choice)
    network.let(20)
    listener.wait(3)
    at_rest(engine)
    whole = alone(each)
    for other in range(3):
        told = listener.tokens["a", other]
        if other == choice:
            assert listener.finish["a", other].finish == "cancelled" and len(told) < 6
        else:
            assert told == whole.tokens["a", other]
    assert engine.close()


def test_cancel_before_it_began() -> None:
    network, listener = Gated(), Listener()
    engine = Engine(network, listener, pages=32, page_size=4, max_running=1)
    engine.start()
    engine.submit(generation("a", [1], 2))
    assert network.entered.acquire(timeout=30)
    engine.submit(generation("b", [1], 2, n=1))
    engine.cancel("b")
    network.let(9)
    listener.wait(2)
    assert listener.finish["b", 0].finish == "cancelled" and not listener.tokens["b", 0]
    assert len(network.steps) == 2
    assert engine.close()


def test_a_deadline_ends_what_runs_and_what_waits() -> None:
    now = [0.0]
    network, listener = Gated(), Listener()
    engine = Engine(network, listener, pages=32, page_size=4, max_running=1, clock=lambda: now[0])
    engine.start()
    engine.submit(generation("runs", [1], 400, deadline=5.0))
    engine.submit(generation("waits", [1], 400, deadline=6.0))
    assert network.entered.acquire(timeout=30)
    now[0] = 7.0
    network.let()
    listener.wait(2)
    assert {output.finish for output in listener.finish.values()} == {"deadline"}
    assert len(listener.tokens["runs", 0]) == 1 and len(network.steps) == 1
    assert engine.close()


@AHEAD
def test_an_error_in_a_step_ends_its_sequences_and_not_the_engine(ahead: int) -> None:
    network, listener, crashes = FlakyNetwork(poison=60), Listener(), list[BaseException]()
    engine = Engine(network, listener, pages=64, page_size=4, ahead=ahead, crashed=crashes.append)
    engine.submit(generation("bad", [60, 1, 2], 5, n=2))
    engine.submit(generation("with it", [1, 2], 5))
    engine.start()
    listener.wait(3)
    engine.submit(generation("after", [1, 2], 5))
    listener.wait(4)
    at_rest(engine)
    assert engine.close()
    assert [str(crash) for crash in crashes] == ["out of luck"]
    bad = [listener.finish[choice] for choice in (("bad", 0), ("bad", 1), ("with it", 0))]
    assert {(end.finish, end.error) for end in bad} == {("error", "RuntimeError: out of luck")}
    assert listener.tokens["after", 0] == alone(generation("after", [1, 2], 5)).tokens["after", 0]


@AHEAD
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_sequence_only(
    ahead: int, temperature: float
) -> None:
    sampling = {"temperature": temperature, "seed": 1}
    good = [generation(i, p, 6, **sampling) for i, p in enumerate(prompts(5))]
    expected, _ = run(good, FlakyNetwork())
    bad = generation("bad", [1, 2, 3, 4, 5, 60], 6, n=2, **sampling)
    listener, _ = run([bad, *good], FlakyNetwork(nan=60), ahead=ahead)
    for choice in range(2):
        end = listener.finish["bad", choice]
        assert (end.finish, end.error) == ("error", "the model's logits are not finite")
    for each in good:
        if 60 not in expected.tokens[each.key, 0][:-1] and each.prompt[-1] != 60:
            assert listener.tokens[each.key, 0] == expected.tokens[each.key, 0]


def test_an_emit_that_raises_ends_nothing() -> None:
    crashes: list[BaseException] = []
    listener = Listener()

    def emit(outputs: list[Output]) -> None:
        listener(outputs)
        raise OSError("the loop is closed")

    engine = Engine(HashNetwork(), emit, pages=32, page_size=4, crashed=crashes.append)
    engine.start()
    engine.submit(generation("a", [1], 3))
    listener.wait(1)
    assert len(listener.tokens["a", 0]) == 3
    assert engine.close()
    assert {str(crash) for crash in crashes} == {"the loop is closed"}


def test_a_defect_ends_what_is_owed_and_begins_anew() -> None:
    listener, crashes = Listener(), list[BaseException]()
    engine = Engine(HashNetwork(), listener, pages=32, page_size=4, crashed=crashes.append)

    def defect() -> None:
        raise RuntimeError("a defect")

    engine.submit(generation("a", [1], 400, n=2))
    engine.call(defect)
    engine.start()
    listener.wait(2)
    assert {end.error for end in listener.finish.values()} == {"RuntimeError: a defect"}
    engine.submit(generation("a", [1], 4))
    listener.wait_tokens("a", 4)
    assert len(crashes) == 1
    assert engine.close()


def test_a_page_that_is_lost_is_noticed_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.llm.engine.engine._REST_S", 0.0)
    listener, noticed = Listener(), threading.Event()
    engine = Engine(
        HashNetwork(), listener, pages=32, page_size=4, crashed=lambda error: noticed.set()
    )
    engine.call(lambda: engine._scheduler.pages.refs.__setitem__(3, 1))
    engine.submit(generation("a", [1], 3))
    engine.start()
    listener.wait(1)
    assert noticed.wait(30)
    engine.submit(generation("b", [1], 3))
    listener.wait(2)
    assert listener.tokens["b", 0] == listener.tokens["a", 0]
    at_rest(engine)
    assert engine.close()


def test_close_ends_what_is_owed() -> None:
    network, listener = Gated(), Listener()
    engine = Engine(network, listener, pages=32, page_size=4, max_running=1)
    engine.start()
    for key in "abc":
        engine.submit(generation(key, [1], 400))
    assert network.entered.acquire(timeout=30)
    network.let(10_000)
    assert engine.close()
    listener.wait(3)
    assert {end.error for end in listener.finish.values()} == {"the replica ends"}
    with pytest.raises(NotReady):
        engine.submit(generation("d", [1]))


# ------------------------------------------------------------------------------------ what it takes


@pytest.mark.parametrize(
    ("error", "param", "options"),
    [
        (ContextTooLong, "prompt", {"prompt": [1] * 64}),
        (BadRequest, "prompt", {"prompt": []}),
        (BadRequest, "prompt", {"prompt": [VOCABULARY]}),
        (BadRequest, "prompt", {"prompt": [-1]}),
        (BadRequest, "n", {"n": 9}),
        (BadRequest, "n", {"n": 0}),
        (BadRequest, "max_tokens", {"max_tokens": -1}),
        (BadRequest, "temperature", {"temperature": -0.1}),
        (BadRequest, "temperature", {"temperature": float("nan")}),
        (BadRequest, "top_p", {"top_p": 0.0}),
        (BadRequest, "min_p", {"min_p": 1.1}),
        (BadRequest, "repetition_penalty", {"repetition_penalty": 0.0}),
        (BadRequest, "logprobs", {"logprobs": 1000}),
        (BadRequest, "logit_bias", {"logit_bias": ((VOCABULARY, 1.0),)}),
        (BadRequest, "stop_ids", {"stop_ids": frozenset({-1})}),
    ],
)
def test_what_can_never_run_is_refused_by_its_field(
    error: type[BadRequest], param: str, options: dict[str, Any]
) -> None:
    listener = Listener()
    engine = Engine(HashNetwork(), listener, pages=16, page_size=4, max_running=8)
    options = {"prompt": [1]} | options
    with pytest.raises(error) as caught:
        engine.submit(generation("a", **options))
    assert caught.value.param == param
    engine.submit(generation("a", [1] * 63, 1))
    engine.start()
    listener.wait(1)
    assert engine.close()


def test_what_waits_is_bounded_and_keys_are_taken_once() -> None:
    engine = Engine(HashNetwork(), Listener(), pages=16, page_size=4, max_waiting=2)
    engine.submit(generation("a", [1]))
    with pytest.raises(Conflict):
        engine.submit(generation("a", [1]))
    engine.submit(generation("b", [1]))
    with pytest.raises(Overloaded):
        engine.submit(generation("c", [1]))
    assert engine.close()


# ------------------------------------------------------------------------------- what more it tells


@AHEAD
def test_logprobs_are_those_of_the_logits_whatever_else_is_sampled(ahead: int) -> None:
    plain = generation("a", [1, 2, 3], 6)
    tokens = alone(plain).tokens["a", 0]
    others = [generation(i, p, 9, logprobs=i % 3) for i, p in enumerate(prompts(5))]
    odd = generation("odd", [4], 6, temperature=0.5, seed=1, logprobs=0, top_k=3)
    listener, _ = run([generation("a", [1, 2, 3], 6, logprobs=4), odd, *others], ahead=ahead)
    told = [entry for output in listener.outputs["a", 0] for entry in output.logprobs or ()]
    assert [entry.token for entry in told] == tokens == listener.tokens["a", 0]
    for count, entry in enumerate(told):
        expected = HashNetwork()._logits(torch.tensor([1, 2, 3, *tokens[:count]])).log_softmax(-1)
        values, ids = expected.topk(4)
        assert [token for token, _ in entry.top] == ids.tolist()
        assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert entry.logprob == pytest.approx(float(expected[entry.token]), abs=1e-5)
    assert all(o.logprobs and o.logprobs[0].top == () for o in listener.outputs["odd", 0])
    for each in others:
        for output in listener.outputs[each.key, 0]:
            assert output.logprobs and len(output.logprobs[0].top) == each.sampling.logprobs


@AHEAD
@pytest.mark.parametrize("prompt", [[5], list(range(40))])
def test_the_prompts_logprobs_come_with_the_first_output(ahead: int, prompt: list[int]) -> None:
    each = generation("a", prompt, 3, n=2, logprobs=2, prompt_logprobs=True, temperature=1, seed=2)
    listener, _ = run(
        [each, generation("b", prompt, 3)], ahead=ahead, token_budget=7, max_running=5
    )
    for choice in range(2):
        first, *others = listener.outputs["a", choice]
        assert all(output.prompt_logprobs is None for output in others)
        told = first.prompt_logprobs
        assert told is not None and len(told) == len(prompt) and told[0] is None
        for count, entry in enumerate(told[1:], 1):
            assert entry is not None and entry.token == prompt[count]
            expected = HashNetwork()._logits(torch.tensor(prompt[:count])).log_softmax(-1)
            assert entry.logprob == pytest.approx(float(expected[prompt[count]]), abs=1e-5)
            assert [token for token, _ in entry.top] == expected.topk(2).indices.tolist()


@AHEAD
def test_a_mask_says_what_may_come_and_when_it_ends(ahead: int) -> None:
    masks: list[ListMask] = []

    def mask() -> ListMask:
        masks.append(ListMask([[3], [7, 9], [33], [60]]))
        return masks[-1]

    asked = generation("m", [1, 2], 20, n=2, mask=mask, temperature=1.0, seed=3)
    others = [generation(i, p, 9) for i, p in enumerate(prompts(6))]
    listener, _ = run([asked, *others], ahead=ahead)
    for choice in range(2):
        tokens = listener.tokens["m", choice]
        assert tokens[0] == 3 and tokens[1] in (7, 9) and tokens[2:] == [33, 60]
        assert listener.finish["m", choice].finish == "stop"
    assert len(masks) == 2
    for each in others:
        assert listener.tokens[each.key, 0] == alone(each).tokens[each.key, 0]


@AHEAD
def test_a_mask_that_fails_or_allows_nothing_ends_its_choice_only(ahead: int) -> None:
    class Broken(ListMask):
        def allowed(self) -> Any:
            raise ValueError("no such state")

    class Unwilling(ListMask):
        def accept(self, token: int) -> bool:
            raise ValueError("not that one")

    masks = {
        "broken": lambda: Broken([]),
        "unwilling": lambda: Unwilling([[3]]),
        "closed": lambda: ListMask([[]]),
    }
    asked = [generation(key, [1], 5, mask=mask) for key, mask in masks.items()]
    listener, _ = run([*asked, generation("other", [1], 5)], ahead=ahead)
    errors = {key: listener.finish[key, 0].error for key in masks}
    assert "no such state" in errors["broken"] and "not that one" in errors["unwilling"]
    assert "allows no token" in errors["closed"]
    assert len(listener.tokens["other", 0]) == 5


def test_one_list_a_step() -> None:
    listener, _ = run([generation(i, [i], 5) for i in range(6)])
    assert [len(batch) for batch in listener.batches] == [6] * 5


def test_the_load_adds_up() -> None:
    network, listener = Gated(), Listener()
    engine = Engine(network, listener, pages=32, page_size=4, max_running=1)
    engine.submit(generation("a", [1] * 9, 3))
    engine.submit(generation("b", [1] * 5, 3, n=1))
    engine.start()
    assert network.entered.acquire(timeout=30)
    network.let(20)
    listener.wait(2)
    at_rest(engine)
    load = engine.load()
    assert load.prompt_total == 14 and load.hit_tokens == 4
    assert load.prompt_tokens == load.output_tokens == 0
    assert load.prefill_rate > 0 and load.decode_rate > 0 and load.pages_cached == 2
    assert engine.close()
