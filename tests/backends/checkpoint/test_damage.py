"""Steps that are not as committed: every bit, every file, every lie of a manifest is noticed, and
the last good version stays loadable."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.checkpoint import (
    BadRecord,
    CheckpointError,
    Corrupt,
    Incomplete,
    Manifest,
    NoSuchStep,
    Run,
    is_whole,
    publish,
    read_tensors,
    verify,
)
from backends.checkpoint.manifest import check_path, structure_id
from backends.checkpoint.records import canonical, digest, sealed, unseal
from tests.backends.checkpoint.samples import loads, make

FILES = [
    "MANIFEST.json",
    "model/config.json",
    "model/model-00001-of-00002.safetensors",
    "model/model-00002-of-00002.safetensors",
    "model/model.safetensors.index.json",
    "state/.metadata",
]


@pytest.fixture
def run(root):
    run = Run(root)
    make(run, 1)
    make(run, 2)
    return run


def check_refused(run):
    """Step 2 is bad: nobody gets it, and step 1 is there instead."""
    assert not is_whole(run, 2)
    assert run.latest().step == 1
    assert loads(run, 1)
    with pytest.raises(CheckpointError):
        publish(run, "stable", 2)
    assert publish(run, "stable", 1).step == 1


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_the_files_are_these(run):
    folder = run.folder(2)
    assert (
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == FILES
    )


@pytest.mark.parametrize("path", FILES)
def test_any_flipped_bit_is_noticed(run, path):
    file = run.folder(2) / path
    original = file.read_bytes()
    for at in range(len(original)):
        flip(file, at, at % 8)
        assert not is_whole(run, 2), f"{path}, byte {at}"
        file.write_bytes(original)
    assert is_whole(run, 2)
    flip(file, len(original) // 2)
    check_refused(run)


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("change", ["missing", "empty", "short", "long", "folder", "link", "pipe"])
def test_any_file_that_is_not_there_as_it_was_is_noticed_by_size_alone(run, path, change):
    file = run.folder(2) / path
    data = file.read_bytes()
    file.unlink()
    if change == "folder":
        file.mkdir()
    elif change == "pipe":
        os.mkfifo(file)
    elif change == "link":
        other = run.root / "elsewhere"
        other.write_bytes(data)
        file.symlink_to(other)
    elif change != "missing":
        file.write_bytes({"empty": b"", "short": data[:-1], "long": data + b"\0"}[change])
    assert not is_whole(run, 2, every_byte=False)
    check_refused(run)


def test_a_folder_replaced_by_a_link_is_noticed(run):
    (run.folder(2) / "model").rename(run.root / "model")
    (run.folder(2) / "model").symlink_to(run.root / "model")
    check_refused(run)


def test_errors_say_which_file_and_what_was_expected(run):
    path = "model/model-00002-of-00002.safetensors"
    manifest = run.manifest(2)
    flip(run.folder(2) / path, -1)
    with pytest.raises(Corrupt) as caught:
        verify(run, 2)
    assert caught.value.path == f"{path}:b.weight"
    assert caught.value.expected == f"xxh3 {manifest.tensors['b.weight'].xxh3}"
    flip(run.folder(2) / path, -1)
    flip(run.folder(2) / path, 9)
    with pytest.raises(Corrupt) as caught:
        verify(run, 2)
    assert caught.value.path == path
    os.truncate(run.folder(2) / path, 20)
    with pytest.raises(Incomplete) as caught:
        verify(run, 2)
    assert (caught.value.path, caught.value.found) == (path, "20 bytes")


def test_tensors_are_checked_where_they_are_read(run):
    manifest = run.manifest(2)
    path = run.folder(2) / "model/model-00002-of-00002.safetensors"
    flip(path, -1)
    with pytest.raises(Corrupt, match=r"b\.weight"):
        read_tensors(run.folder(2), manifest)
    assert read_tensors(run.folder(2), manifest, names=["a.weight"])["a.weight"].eq(2).all()
    path.unlink()
    with pytest.raises(Incomplete, match="no file"):
        read_tensors(run.folder(2), manifest)


def test_a_step_whose_number_is_another_is_refused(run):
    run.folder(2).rename(run.folder(3))
    with pytest.raises(BadRecord, match="says it is step 2"):
        run.manifest(3)
    assert run.latest().step == 1
    with pytest.raises(NoSuchStep, match="not committed"):
        run.manifest(2)
    with pytest.raises(NoSuchStep, match="not 0000"):
        run.manifest(1, hash="0" * 32)


def lie(run, change):
    """Rewrites step 2's manifest, so that it is consistent in itself where it can be."""
    path = run.folder(2) / "MANIFEST.json"
    value = unseal(path.read_bytes(), "")
    change(value)
    forms = {
        name: (tuple(record["shape"]), record["dtype"])
        for name, record in value["tensors"].items()
        if isinstance(record, dict) and "shape" in record
    }
    value["structure_id"] = structure_id(forms, value["ties"], value["model"])
    path.write_bytes(canonical(sealed(value)))


def _swap(value):
    tensors, other = value["tensors"], value["tensors"]["b.weight"].copy()
    tensors["b.weight"] = {**tensors["b.empty"], "shape": [0], "dtype": "BF16"}
    tensors["b.empty"] = {**other, "shape": [1, 5]}


def _file_with_its_hash(value):
    """A file that exists, but is not the model's."""
    record = value["files"]["state/.metadata"]
    value["files"]["model/extra.safetensors"] = record


LIES = {
    "hash of a file": lambda v: v["files"]["state/.metadata"].update(xxh3="0" * 32),
    "hash of a tensor": lambda v: v["tensors"]["a.weight"].update(xxh3="0" * 32),
    "size of a file": lambda v: v["files"]["state/.metadata"].update(bytes=1),
    "a file that is not there": _file_with_its_hash,
    "names of tensors": _swap,
    "shape": lambda v: v["tensors"]["a.weight"].update(shape=[2, 3]),
    "dtype": lambda v: v["tensors"]["a.weight"].update(dtype="I32"),
    "a tensor less": lambda v: v["tensors"].pop("a.weight"),
    "a file less": lambda v: v["files"].pop("model/model-00001-of-00002.safetensors"),
    "range of a tensor": lambda v: v["tensors"]["a.weight"].update(
        start=v["tensors"]["a.weight"]["start"] - 4, end=v["tensors"]["a.weight"]["end"] - 4
    ),
    "step": lambda v: v.update(step=1),
}


@pytest.mark.parametrize("what", LIES)
def test_a_manifest_that_lies_is_found_out(run, what):
    lie(run, LIES[what])
    check_refused(run)


def test_an_index_that_leads_other_readers_elsewhere_is_found_out(run):
    path = "model/model.safetensors.index.json"
    file = run.folder(2) / path
    text = file.read_bytes().replace(b"00001-of", b"00002-of", 1)
    file.write_bytes(text)
    lie(run, lambda v: v["files"].update({path: {"bytes": len(text), "xxh3": digest(text)}}))
    with pytest.raises(Corrupt, match=r"index\.json:a\.steps"):
        verify(run, 2)
    check_refused(run)


HUGE = 1 << 62
ABSURD = {
    "schema": lambda v: v.update(schema=99),
    "no schema": lambda v: v.pop("schema"),
    "unknown field": lambda v: v.update(extra=1),
    "missing field": lambda v: v.pop("position"),
    "number as text": lambda v: v.update(step="2"),
    "truth as number": lambda v: v.update(position=True),
    "negative position": lambda v: v.update(position=-1),
    "huge file": lambda v: v["files"]["state/.metadata"].update(bytes=HUGE),
    "negative file": lambda v: v["files"]["state/.metadata"].update(bytes=-1),
    "hash that is none": lambda v: v["files"]["state/.metadata"].update(xxh3="../x"),
    "huge tensor": lambda v: v["tensors"]["a.weight"].update(shape=[HUGE, HUGE], end=HUGE),
    "tensor past its file": lambda v: v["tensors"]["a.weight"].update(shape=[300, 2], end=2496),
    "huge and empty": lambda v: v["tensors"]["b.empty"].update(shape=[0, -4]),
    "many dimensions": lambda v: v["tensors"]["b.empty"].update(shape=[0] * 65),
    "shape of fractions": lambda v: v["tensors"]["a.weight"].update(shape=[3.0, 2.0]),
    "unknown dtype": lambda v: v["tensors"]["a.weight"].update(dtype="F33"),
    "unlisted file": lambda v: v["tensors"]["a.weight"].update(file="model/x"),
    "overlapping tensors": lambda v: v["tensors"].update(twin=dict(v["tensors"]["a.weight"])),
    "range over the length": lambda v: v["tensors"]["b.empty"].update(start=0, end=0),
    "tie to nothing": lambda v: v.update(ties={"x": "y"}),
    "tie of a stored one": lambda v: v.update(ties={"a.weight": "b.weight"}),
    "lists for tables": lambda v: v.update(files=[]),
    "numbers for tables": lambda v: v["tensors"].update(x=1),
    "probe": lambda v: v.update(probe={"inputs": 1}),
    "evaluation": lambda v: v.update(evaluation={"loss": {}}),
}


@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_manifest_is_refused_before_anything_is_read(run, what):
    path = run.folder(2) / "MANIFEST.json"
    value = unseal(path.read_bytes(), "")
    ABSURD[what](value)
    path.write_bytes(canonical(sealed(value)))
    with pytest.raises(BadRecord, match=r"MANIFEST\.json"):
        run.manifest(2)
    check_refused(run)


PATHS = [
    "/etc/passwd",
    "../x",
    "model/../../x",
    "model/./x",
    "",
    "model//x",
    "model/",
    "./x",
    "a\\b",
    "a\0b",
    "a b",
    "~",
    "é",
    "x" * 300,
    "/".join("abcdefgh" * 100),
    "MANIFEST.json",
    "..",
]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_elsewhere_are_refused(run, path):
    with pytest.raises(BadRecord):
        check_path(path)
    lie(run, lambda v: v["files"].update({path: v["files"]["state/.metadata"]}))
    check_refused(run)


def test_a_manifest_larger_than_any_is_not_read(run):
    with (run.folder(2) / "MANIFEST.json").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadRecord, match="larger than"):
        run.manifest(2)
    check_refused(run)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"1e999", b"[" * 100_000])
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(BadRecord):
        Manifest.parse(text)


def test_another_spelling_of_the_same_manifest_is_not_the_same(run):
    data = (run.folder(2) / "MANIFEST.json").read_bytes()
    with pytest.raises(BadRecord, match="not in the form"):
        Manifest.parse(data + b"\n")
    assert Manifest.parse(data).hash == digest(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(data=st.data())
def test_whatever_is_put_into_a_manifest_is_either_refused_or_read_as_it_stands(
    data, manifest_text
):
    value = unseal(manifest_text, "")
    place, keys = value, list(value)
    while True:
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            keys = list(place)
            continue
        place[key] = data.draw(JSON)
        break
    text = canonical(sealed(value))
    try:
        manifest = Manifest.parse(text)
    except BadRecord:
        return
    assert manifest.to_bytes() == text
    manifest.check()


@pytest.fixture(scope="module")
def manifest_text(place):
    return make(Run(place / "text"), 1).to_bytes()
