"""Parameters of requests and outputs: taken, refused, and what they come to."""

from __future__ import annotations

import pytest

from gateway.oip.parameters import Wanted
from tests.gateway.oip.asked import PAIR, parse, refused, x


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, (0, 0)),
        ({"priority": 0}, (0, 0)),
        ({"priority": 1}, (2, 0)),
        ({"priority": 3}, (0, 0)),
        ({"priority": 5, "timeout": 250}, (-2, 250)),
        ({"timeout": 0}, (0, 0)),
        ({"sequence_id": 0, "sequence_start": False, "sequence_end": False}, (0, 0)),
        ({"sequence_id": ""}, (0, 0)),
        (None, (0, 0)),
    ],
)
def test_parameters_that_are_taken(parameters, expected):
    request = parse({"inputs": [x()], "parameters": parameters})
    assert (request.priority, request.timeout_us) == expected


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"priority": 6}, "priority is 6; levels go from 1 (highest) to 5"),
        ({"priority": -1}, "must be a whole number, not -1"),
        ({"priority": True}, "must be a whole number, not True"),
        ({"timeout": 1.5}, "must be a whole number of microseconds"),
        ({"timeout": "1"}, "must be a whole number of microseconds"),
        ({"binary_data_output": 1}, "must be true or false"),
        ({"sequence_id": 7}, "sequences with state are not offered"),
        ({"sequence_id": "a"}, "x-session-id"),
        ({"sequence_id": 1.5}, "a whole number or a string"),
        ({"sequence_start": True}, "sequences with state are not offered"),
        ({"sequence_end": True}, "sequences with state are not offered"),
        ({"triton_enable_empty_final_response": True}, "start with triton_ are reserved"),
        ({"my_parameter": 1}, "my_parameter is not known here and no model would see it"),
        ({"headers": {}}, "headers is not known"),
        ([], "must be an object"),
    ],
)
def test_parameters_that_are_refused(parameters, message):
    assert message in refused({"inputs": [x()], "parameters": parameters}).message


@pytest.mark.parametrize(
    ("outputs", "parameters", "expected"),
    [
        ([], {}, (Wanted(0, False, 0), Wanted(1, False, 0))),
        (None, {"binary_data_output": True}, (Wanted(0, True, 0), Wanted(1, True, 0))),
        ([], {"binary_data_output": True}, (Wanted(0, True, 0), Wanted(1, True, 0))),
        ([{"name": "n"}], {}, (Wanted(1, False, 0),)),
        # A listed output comes as JSON unless it says otherwise itself, as in Triton.
        ([{"name": "n"}], {"binary_data_output": True}, (Wanted(1, False, 0),)),
        ([{"name": "y", "parameters": {"binary_data": True}}], {}, (Wanted(0, True, 0),)),
        (
            [{"name": "n"}, {"name": "y", "parameters": {"classification": 2}}],
            {},
            (Wanted(1, False, 0), Wanted(0, False, 2)),
        ),
        ([{"name": "y", "parameters": {"classification": 0}}], {}, (Wanted(0, False, 0),)),
        ([{"name": "y", "parameters": None}], {}, (Wanted(0, False, 0),)),
    ],
)
def test_requested_outputs(outputs, parameters, expected):
    document = {"inputs": [x()], "outputs": outputs, "parameters": parameters}
    assert parse(document).wanted == expected


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"name": "z"}, "outputs[0].name is 'z'; the model gives y, n"),
        ({}, "outputs[0].name is None"),
        ({"name": []}, "outputs[0].name is []"),
        ("y", "outputs[0] must be an object"),
        ({"name": "y", "shape": [1]}, "outputs[0].shape is not known"),
        ({"name": "y", "parameters": {"binary_data": 1}}, "must be true or false"),
        ({"name": "y", "parameters": {"binary_data": "true"}}, "must be true or false"),
        ({"name": "y", "parameters": {"classification": -1}}, "a whole number of classes"),
        ({"name": "y", "parameters": {"classification": 1.0}}, "a whole number of classes"),
        ({"name": "y", "parameters": {"shared_memory_region": "r"}}, "shared memory"),
        ({"name": "y", "parameters": {"foo": 1}}, "outputs[0].parameters.foo is not known"),
        ({"name": "y", "parameters": []}, "must be an object"),
    ],
)
def test_outputs_that_are_refused(output, message):
    assert message in refused({"inputs": [x()], "outputs": [output]}).message


def test_an_output_asked_for_twice():
    document = {"inputs": [x()], "outputs": [{"name": "y"}, {"name": "y"}]}
    assert "'y' is asked for twice" in refused(document).message


def test_bytes_have_no_classes():
    a = {"name": "a", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}
    b = {"name": "b", "datatype": "BYTES", "shape": [1, 1], "data": ["s"]}
    outputs = [{"name": "out_b", "parameters": {"classification": 1}}]
    assert "no highest" in refused({"inputs": [a, b], "outputs": outputs}, codec=PAIR).message
