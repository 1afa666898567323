"""Buckets bound the padding; elements are what a padded batch really holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.wire import Signature, TensorSpec
from gateway.request import Tensor, TensorRequest
from gateway.sizes import Sizes


def signature(ragged: str) -> Signature:
    inputs = (TensorSpec("ids", "INT64", (-1,)), TensorSpec("scale", "FP32", (4,)))
    return Signature(inputs, (), 8, ragged)


def request(length: int, rows: int = 1) -> TensorRequest:
    inputs = (
        Tensor("ids", "INT64", (rows, length), bytes(8 * rows * length)),
        Tensor("scale", "FP32", (rows, 4), bytes(16 * rows)),
    )
    return TensorRequest(inputs, rows, (), lambda outcome: None, arrived=0.0)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_within_a_bucket_padding_at_most_doubles_a_row(one, other):
    sizes = Sizes(signature("pad"))
    if sizes.bucket(request(one)) == sizes.bucket(request(other)):
        assert max(one, other) <= 2 * min(one, other)
    (bucket,) = sizes.bucket(request(one))
    assert one <= 1 << bucket < 2 * one or one == 1


@given(st.integers(0, 300), st.integers(1, 4))
def test_elements_count_the_padding(length, rows):
    padded = Sizes(signature("pad")).elements(request(length, rows))
    joined = Sizes(signature("concat")).elements(request(length, rows))
    assert joined == rows * (length + 4)
    assert joined <= padded <= rows * (2 * max(length, 1) + 4)
    assert not Sizes(signature("concat")).buckets


def test_lengths_at_the_edge_of_a_bucket():
    sizes = Sizes(signature("pad"))
    lengths = (0, 1, 2, 3, 4, 5, 8, 9)
    assert [sizes.bucket(request(n))[0] for n in lengths] == [0, 0, 1, 2, 2, 3, 3, 4]
