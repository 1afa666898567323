"""The files: every dtype and shape, both ways against the safetensors library; what is refused."""

from __future__ import annotations

import json

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backends.checkpoint import (
    BadRecord,
    Run,
    Staging,
    commit,
    find_ties,
    is_whole,
    read_tensors,
)
from backends.checkpoint.tensors import DTYPES, finite, layout
from tests.backends.checkpoint.samples import MODEL, expected, make


def written(root, tensors, ties=None, **changes):
    """Commits `tensors` as one shard; the run and the manifest."""
    run = Run(root)
    staging = Staging(run, 1, "a", 0)
    staging.create()
    aliases = ties or {}
    part = staging.guarded(
        lambda: staging.write_shard(
            0, 1, {name: tensor for name, tensor in tensors.items() if name not in aliases}
        )
    )
    options = {"model": MODEL, "expected": expected(tensors), "position": 0, "ties": ties}
    return run, commit(staging, [part], **{**options, **changes})


def shard(run):
    (path,) = (run.folder(1) / "model").glob("*.safetensors")
    return path


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def samples(dtype):
    """Tensors of a dtype: 2-d, a scalar, empty in the middle, strided."""
    width = dtype.itemsize
    raw = torch.arange(24 * width, dtype=torch.int64).remainder(2).to(torch.uint8)
    flat = raw.view(dtype) if dtype != torch.bool else raw.bool()
    tensors = {"matrix": flat.reshape(4, 6), "empty": flat[:0].reshape(2, 0, 3)}
    if dtype != torch.float4_e2m1fn_x2:
        tensors["scalar"] = flat[1].clone()
        tensors["strided"] = flat.reshape(4, 6).clone().t()
    return tensors


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_reads_back_here_and_in_the_library(root, name):
    tensors = samples(DTYPES[name])
    run, manifest = written(root, tensors)
    ours, theirs = read_tensors(run.folder(1), manifest), load_file(shard(run))
    for found in (ours, theirs):
        assert found.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found[key].dtype == tensor.dtype
            assert found[key].shape == tensor.shape
            assert torch.equal(bits(found[key]), bits(tensor))


@pytest.mark.parametrize("name", DTYPES)
def test_the_file_is_the_librarys_own_file_up_to_the_order_of_keys(root, name):
    tensors = {key: tensor.contiguous() for key, tensor in samples(DTYPES[name]).items()}
    run, _ = written(root, tensors)
    save_file(tensors, root / "theirs", metadata={"format": "pt"})

    def parsed(path):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        return orjson.loads(data[8 : 8 + length]), data[8 + length :]

    assert parsed(shard(run)) == parsed(root / "theirs")
    assert int.from_bytes(shard(run).read_bytes()[:8], "little") % 8 == 0


# torch converts nothing to F4.
CASTABLE = [name for name in DTYPES if name != "F4"]


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(CASTABLE), st.lists(st.integers(0, 5), max_size=4)),
        max_size=8,
    )
)
def test_layouts_are_aligned_back_to_back_and_open_in_the_library(tmp_path_factory, table):
    tensors = {
        name: torch.zeros(shape, dtype=torch.float32).to(DTYPES[dtype])
        for name, (dtype, shape) in table.items()
    }
    head, spans = layout(tensors)
    at = len(head)
    assert at % 8 == 0
    for name, start, end in spans:
        assert start == at
        assert start % tensors[name].dtype.itemsize == 0
        assert end - start == tensors[name].numel() * tensors[name].dtype.itemsize
        at = end
    path = tmp_path_factory.mktemp("layout") / "x.safetensors"
    path.write_bytes(head + bytes(at - len(head)))
    with safe_open(path, "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }


def test_a_sharded_folder_is_one_that_transformers_loads(root):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=40,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    state = model.state_dict()
    ties = find_ties(state)
    assert ties == {"lm_head.weight": "model.embed_tokens.weight"}
    names = [name for name in state if name not in ties]
    run = Run(root)
    staging = Staging(run, 1, "a", 0)
    staging.create()
    parts = [
        staging.write_shard(i, 3, {name: state[name] for name in names[i::3]}) for i in range(3)
    ]
    parts.append(staging.write_file("model/generation_config.json", b"{}"))
    commit(
        staging,
        parts,
        model={
            "class": "transformers:LlamaForCausalLM",
            "config": json.loads(config.to_json_string(use_diff=False)),
        },
        expected=expected(state),
        position=0,
        ties=ties,
    )
    loaded = LlamaForCausalLM.from_pretrained(run.folder(1) / "model", dtype=torch.bfloat16)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_the_index_names_every_tensors_file(root):
    run = Run(root)
    manifest = make(run, 1)
    index = orjson.loads((run.folder(1) / "model/model.safetensors.index.json").read_bytes())
    assert index["weight_map"].keys() == manifest.tensors.keys()
    assert index["metadata"]["total_size"] == 3 * 2 * 4 + 8 + 5 * 2
    config = orjson.loads((run.folder(1) / "model/config.json").read_bytes())
    assert config == {"width": 2, "architectures": ["Toy"]}


def test_tied_tensors_are_written_once_and_come_back_as_one(root):
    weight = torch.randn(4, 3)
    tensors = {"embedding": weight, "head": weight, "other": torch.randn(2)}
    ties = find_ties(tensors)
    assert ties == {"head": "embedding"}
    run, manifest = written(root, tensors, ties)
    assert "head" not in load_file(shard(run))
    found = read_tensors(run.folder(1), manifest)
    assert found["head"] is found["embedding"]
    assert torch.equal(found["head"], weight)
    assert read_tensors(run.folder(1), manifest, names=["head"])["head"].equal(weight)
    assert manifest.structure["head"] == ((4, 3), "F32")


def test_tensors_that_share_memory_are_refused_with_their_names(root):
    weight = torch.randn(4, 3)
    staging = Staging(Run(root), 1, "a", 0)
    staging.create()
    for other in (weight, weight[1:], weight.t(), weight.view(torch.int32)):
        with pytest.raises(BadRecord, match="first and second share memory"):
            staging.write_shard(0, 1, {"first": weight, "second": other})
    # Parts of one memory that do not overlap are not shared.
    part = staging.write_shard(0, 1, {"first": weight[:2], "second": weight[2:]})
    assert part.tensors.keys() == {"first", "second"}
    staging.discard()


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(2, 2).to_sparse(), "make it dense"),
        (torch.empty(2, device="meta"), "has no data"),
        (torch.zeros(2, dtype=torch.complex128), "cannot be stored"),
        (torch.zeros((), dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "give it one"),
    ],
)
def test_tensors_that_cannot_be_written_are_refused_by_name(root, tensor, reason):
    staging = Staging(Run(root), 1, "a", 0)
    with pytest.raises(BadRecord, match=f"odd.*{reason}"):
        staging.write_shard(0, 1, {"odd": tensor})
    with pytest.raises(BadRecord, match="cannot be named"):
        staging.write_shard(0, 1, {"__metadata__": torch.zeros(1)})


def test_conjugated_views_are_written_as_what_they_show(root):
    value = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64).conj()
    run, manifest = written(root, {"c": value})
    assert torch.equal(read_tensors(run.folder(1), manifest)["c"], value.resolve_conj())


def test_a_model_without_tensors_and_a_rank_without_any(root):
    run, _ = written(root, {})
    assert is_whole(run, 1)
    assert load_file(shard(run)) == {}


@pytest.mark.parametrize("place", [0, 4, 99])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "C64", "F8_E5M2"])
def test_what_is_not_finite_is_seen_wherever_it_is(name, value, place):
    whole = torch.randn(100).to(DTYPES[name])
    assert finite(whole) and finite(whole[:0])
    broken = whole.float() if name == "F8_E5M2" else whole.clone()
    broken[place] = value
    assert not finite(broken.to(DTYPES[name]))


def test_integers_are_finite():
    assert finite(torch.tensor([0, 2**62])) and finite(torch.tensor([True]))
