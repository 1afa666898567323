from __future__ import annotations

import json

import pytest

from bench.roofline import Machine, Roofline, Shape

SMOLLM2 = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
MACHINE = Machine(bytes_s=40e9, flops=400e9)


@pytest.fixture
def shape(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    return Shape.of(tmp_path)


def test_a_decoder_is_counted(shape):
    # 134.5 million as published, less the norms' 35,136 that nothing is multiplied with.
    assert shape.parameters == 134_515_008 - 61 * 576
    assert shape.layer_parameters == shape.parameters - 49152 * 576
    assert shape.kv_bytes == 2 * 30 * 3 * 64 * 2


def test_one_answer_is_bound_by_reading_and_many_by_multiplying(shape):
    roof = Roofline(shape, MACHINE)
    assert roof.step_s(1, 0) == pytest.approx(2 * shape.parameters / MACHINE.bytes_s)
    assert roof.step_s(64, 0) == pytest.approx(2 * shape.parameters * 64 / MACHINE.flops)
    assert roof.step_s(1, 1000) - roof.step_s(1, 0) == pytest.approx(
        1000 * shape.kv_bytes / MACHINE.bytes_s
    )
    assert Roofline(shape, MACHINE, 1.0).step_s(1, 0) == pytest.approx(roof.step_s(1, 0) / 2)


def test_a_prompt_in_parts_costs_what_it_costs_whole(shape):
    roof = Roofline(shape, MACHINE)
    assert roof.prefill_s(100) + roof.prefill_s(28, 100) == pytest.approx(roof.prefill_s(128))
    attention = 2 * 30 * 9 * 64 * 128**2
    operations = 2 * shape.layer_parameters * 128 + attention
    assert roof.prefill_s(128) * MACHINE.flops == pytest.approx(operations)


def test_a_shared_prefix_counts_once_in_a_task(shape):
    roof = Roofline(shape, MACHINE)
    apart = roof.task_s(32, shared=0, own=288, tokens=8)
    shared = roof.task_s(32, shared=256, own=32, tokens=8)
    assert apart - shared == pytest.approx(31 * roof.prefill_s(256))
    assert roof.task_s(1, shared=256, own=32, tokens=8) == pytest.approx(
        roof.task_s(1, shared=0, own=288, tokens=8)
    )


def test_steps_at_the_roof_use_all_of_what_binds_them(shape):
    roof = Roofline(shape, MACHINE)
    assert roof.utilisation(1, 500, roof.step_s(1, 500))[0] == pytest.approx(1.0)
    assert roof.utilisation(64, 100, roof.step_s(64, 100))[1] == pytest.approx(1.0)
