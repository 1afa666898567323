"""How much cache a replica takes, and what a checkpoint's weights are read as."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from backends.config import parse
from backends.errors import ConfigError, ModelFailed
from backends.llm import boot, weights
from backends.llm.boot import SHAPES, Shapes, pages_of
from backends.llm.weights import Reading, tier_of
from backends.tiers import NoRoom, Tier

GIB = 1 << 30


def config(text: str = "") -> Any:
    return parse(f'model = "m"\nkind = "llm"\nrun = "r"\n{text}', Path("/srv/r.toml"), {})


def network(device: str = "cpu", context: int = 8192) -> Any:
    return SimpleNamespace(
        page_bytes=lambda size: 1000 * size, max_context=context, device=torch.device(device)
    )


def test_what_the_operator_says_is_taken():
    assert pages_of(config("pages = 77"), network(), 0) == 77
    assert pages_of(config('kv_bytes = "1 MB"\npage_size = 10'), network(), 0) == 100
    with pytest.raises(ConfigError, match="kv_bytes: at least 32000 bytes, which are two pages"):
        pages_of(config('kv_bytes = "20 KB"'), network(), 0)


def test_left_to_itself_it_takes_a_part_of_what_is_free(monkeypatch):
    monkeypatch.setattr(boot, "room", lambda device: 40 * GIB)
    assert pages_of(config(), network(), 0) * 16_000 <= 2 * GIB
    assert 30 * GIB < pages_of(config(), network("cuda", 10**7), 0) * 16_000 < 36 * GIB
    beside = pages_of(config(), network("cuda", 10**7), 16 * GIB) * 16_000
    assert beside + 16 * GIB < 37 * GIB, "the next version has room"
    alone = pages_of(config(), network("cuda", 10**7), 30 * GIB) * 16_000
    assert alone > 30 * GIB, "it would leave too little: the next one gets another process"
    few = pages_of(config("max_running = 1"), network(context=32), 0)
    assert few == 8, "no more than is of use"


def reading(name: str = "auto", **described: Any) -> Reading:
    tensors = {"a": SimpleNamespace(shape=(1 << 10, 1 << 20))}
    manifest: Any = SimpleNamespace(model={"config": described}, tensors=tensors)
    return Reading(Path("/"), manifest, name, "cpu", 16, None)


def test_weights_are_what_they_were_trained_as_or_what_is_wanted():
    assert reading(dtype="float32").dtype == "float32" and reading().dtype == "bf16"
    assert reading("int8", dtype="float32").dtype == "int8"
    assert reading("int8").bytes == GIB and reading("fp32").bytes == 4 * GIB
    with pytest.raises(ModelFailed, match="'float64' are not supported"):
        _ = reading(dtype="float64").dtype


def test_a_version_without_room_waits_or_wants_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(weights, "room", lambda device: 3 * GIB)
    for given, world in ((reading(), 1), (reading("fp32"), 2)):
        assert tier_of(given, world, 0, alike=False) is Tier.BESIDE
    for held, alone in ((0, False), (GIB // 2, False), (2 * GIB, True)):
        with pytest.raises(NoRoom, match=r"it takes 4096 MiB .*and 3072 MiB are free") as found:
            tier_of(reading("fp32"), 1, held, alike=True)
        assert found.value.alone is alone


def test_a_gpu_without_room_exchanges_weights_that_are_alike_with_the_hosts(monkeypatch):
    monkeypatch.setattr(weights, "room", lambda device: 3 * GIB)
    monkeypatch.setattr(weights, "host_room", lambda: 9 * GIB)
    given = reading("fp32")._replace(device="cuda:0")
    assert tier_of(given, 1, 4 * GIB, alike=True) is Tier.EXCHANGE
    for host, alike in ((9 * GIB, False), (GIB, True)):
        monkeypatch.setattr(weights, "host_room", lambda host=host: host)
        with pytest.raises(NoRoom):
            tier_of(given, 1, 4 * GIB, alike=alike)


def test_shapes_are_remembered_for_what_serves_and_the_last_others():
    shapes = Shapes()
    assert not shapes.alike("1", "small", "")
    for version in range(2, 3 * SHAPES):
        assert shapes.alike(str(version), "small", "1")
    assert len(shapes) == SHAPES
    assert not shapes.alike("large", "large", "1")
    assert shapes.alike("back", "small", str(3 * SHAPES - 1))
    assert not shapes.alike("older", "small", "2")
