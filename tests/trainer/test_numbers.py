"""Optimizer, schedule and mesh against what they stand for."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.average import Average
from trainer.config import OptimizerConfig, ParallelConfig, Rule, ScheduleConfig
from trainer.mesh import MeshPlan
from trainer.optim import Optimizer
from trainer.schedule import factor
from trainer.seeds import derive
from trainer.weights import plan_files


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2))


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6),
        OptimizerConfig(name="sgd", lr=0.05, weight_decay=0.1, momentum=0.9),
        OptimizerConfig(name="sgd", lr=0.05, momentum=0.0),
    ],
)
def test_updates_are_those_of_torch(config):
    ours, theirs = model(), model()
    optimizer = Optimizer(dict(ours.named_parameters()), config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1]},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        oracle: torch.optim.Optimizer = torch.optim.AdamW(
            groups, lr=1, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
        )
    else:
        oracle = torch.optim.SGD(
            groups, lr=1, momentum=config.momentum, weight_decay=config.weight_decay
        )
    for step in range(1, 8):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        rate = config.lr / step
        for group in oracle.param_groups:
            group["lr"] = rate
        for one in (ours, theirs):
            one(x).square().mean().backward()
        squares = optimizer.take_gradients()
        wanted = sum(p.grad.double().square().sum() for p in theirs.parameters())
        assert float(squares) == pytest.approx(float(wanted), rel=1e-5)
        optimizer.step(step, rate)
        oracle.step()
        oracle.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_rules_change_rate_and_decay_by_name():
    net = model()
    rules = {
        "2.*": Rule(lr=0.5, weight_decay=0.0),
        "*.bias": Rule(weight_decay=0.2),
        "*": Rule(9.0),
    }
    config = OptimizerConfig(name="sgd", lr=1, weight_decay=0.1, momentum=0.0, rules=rules)
    optimizer = Optimizer(dict(net.named_parameters()), config)
    found = {name: (group.decay, group.lr) for group in optimizer.groups for name in group.names}
    assert found["2.weight"] == (0.0, 0.5) and found["2.bias"] == (0.0, 0.5)  # the first counts
    assert found["0.bias"] == (0.2, 1.0) and found["0.weight"] == (0.1, 9.0)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(torch.ones(3, 5)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    optimizer.take_gradients()
    optimizer.step(1, 0.1)
    for name, parameter in net.named_parameters():
        decay, lr = found[name]
        wanted = before[name] - 0.1 * lr * (gradients[name] + decay * before[name])
        torch.testing.assert_close(parameter, wanted)


def test_an_average_follows_early_and_then_slowly():
    net = model()
    average = Average(dict(net.named_parameters()), 0.9, net)
    wanted = net[2].weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            net[2].weight.add_(0.01)
        decay = min(0.9, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * net[2].weight.detach()
        average.update(step)
    torch.testing.assert_close(average.tensors["2.weight"], wanted)
    own = net[2].weight.detach().clone()
    with average.shown():
        torch.testing.assert_close(net[2].weight.detach(), wanted)
    assert torch.equal(net[2].weight, own)


def test_frozen_parameters_stay_and_untouched_ones_only_decay():
    net = model()
    net[0].requires_grad_(False)
    optimizer = Optimizer(
        dict(net.named_parameters()),
        OptimizerConfig(name="sgd", lr=1, weight_decay=0.5, momentum=0.0),
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert float(optimizer.take_gradients()) == 0.0
    optimizer.step(1, 0.1)
    after = dict(net.named_parameters())
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["2.bias"], before["2.bias"])
    torch.testing.assert_close(after["2.weight"], before["2.weight"] * 0.95)


def test_scaling_the_gradients_scales_the_update():
    net = model()
    before = net[2].weight.detach().clone()
    optimizer = Optimizer(
        dict(net.named_parameters()), OptimizerConfig(name="sgd", lr=1, momentum=0.0)
    )
    net(torch.ones(3, 5)).sum().backward()
    gradient = net[2].weight.grad.clone()
    optimizer.take_gradients()
    optimizer.scale_gradients(torch.tensor(0.25, dtype=torch.float64))
    optimizer.step(1, 1.0)
    torch.testing.assert_close(net[2].weight, before - gradient / 4)


@given(
    st.sampled_from(["constant", "cosine", "linear", "wsd"]),
    st.integers(0, 60),
    st.floats(0, 1),
    st.integers(1, 100),
)
def test_rates_rise_then_fall_to_what_is_left(name, warmup, final, steps):
    config = ScheduleConfig(name=name, warmup=warmup, final=final)
    rates = [factor(config, step, steps) for step in range(1, steps + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert all(a >= b - 1e-12 for a, b in pairwise(falling))
    if falling:
        assert falling[0] == 1.0
        assert falling[-1] >= min(1.0, final) - 1e-12


def test_schedules_have_their_shapes():
    def at(name: str, step: int, **options: object) -> float:
        return factor(ScheduleConfig(name=name, **options), step, 100)  # type: ignore[arg-type]

    assert at("linear", 51) == 0.5
    assert at("cosine", 51) == pytest.approx(0.5)
    assert at("cosine", 26) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert at("linear", 51, final=0.2) == pytest.approx(0.6)
    assert [at("wsd", step) for step in (1, 80, 81, 91)] == [1, 1, 1, 0.5]
    assert at("wsd", 91, decay=10) == 1 and at("wsd", 96, decay=10) == 0.5
    assert at("constant", 5, warmup=10) == 0.5 and at("constant", 100, warmup=10) == 1


@pytest.mark.parametrize(
    ("replicate", "shard", "ranks", "found"),
    [
        (1, -1, 1, (1, 1)),
        (1, -1, 8, (1, 8)),
        (2, -1, 8, (2, 4)),
        (-1, 2, 8, (4, 2)),
        (2, 4, 8, (2, 4)),
        (-1, 1, 3, (3, 1)),
    ],
)
def test_meshes_fit_the_ranks(replicate, shard, ranks, found):
    plan = MeshPlan.of(ParallelConfig(dp_replicate=replicate, dp_shard=shard), ranks)
    assert (plan.dp_replicate, plan.dp_shard) == found and plan.ranks == ranks


@pytest.mark.parametrize(("replicate", "shard", "ranks"), [(1, 2, 1), (3, -1, 4), (2, 2, 8)])
def test_meshes_that_do_not_fit_say_what_would(replicate, shard, ranks):
    config = ParallelConfig(dp_replicate=replicate, dp_shard=shard)
    with pytest.raises(ValueError, match=r"does not fit \d ranks?; start .* torchrun"):
        MeshPlan.of(config, ranks)


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 10**6),
)
def test_each_tensor_is_in_one_file(sizes, ranks, limit):
    tensors = {f"t{index}": size for index, size in enumerate(sizes)}
    files = plan_files(tensors, ranks, limit)
    assert [name for file in files for name in file] == list(tensors)
    assert all(files)
    largest = max(sum(tensors[name] for name in file) for file in files)
    assert largest <= max(limit, sum(sizes) / ranks) + 2 * max(sizes)


def test_seeds_differ_by_purpose():
    seeds = {derive(0, "step", n, m, r) for n in range(20) for m in range(3) for r in range(3)}
    assert len(seeds) == 180 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive(0, "a", 1) != derive(1, "a", 1)
    assert derive(0, "step", 1, 12) != derive(0, "step", 11, 2)
