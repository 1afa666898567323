"""Request and output parameters: which there are, what they may be, what they mean to us.

A parameter that would change the answer and that nothing here honours is refused by name, as is
one that nobody knows: no model sees it, so taking it would answer another question than was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from backends.wire import Signature
from gateway.errors import BadRequest

# Triton's scale (1 is highest, 0 says "default") on the gateway's, where 0 is ordinary.
PRIORITY_LEVELS = 5
DEFAULT_LEVEL = 3

_SHARED_MEMORY = "shared memory is not offered here; send the data in the request"
_SEQUENCE = (
    "sequences with state are not offered here; for requests that should reach the same replica, "
    "send the header x-session-id"
)


class RequestParameters(NamedTuple):
    """`timeout_us` and `priority` (the gateway's scale): 0 where none is asked for."""

    priority: int = 0
    timeout_us: int = 0
    binary: bool = False


class Wanted(NamedTuple):
    """One output of the answer: its place in the signature, its form, and how many of the highest
    classes to give in place of the tensor (0: the tensor)."""

    output: int
    binary: bool
    classes: int


NO_PARAMETERS = RequestParameters()


def request_parameters(given: Any) -> RequestParameters:
    """Raises BadRequest."""
    if given is None:
        return NO_PARAMETERS
    priority = timeout_us = 0
    binary = False
    for name, value in _object(given, "parameters").items():
        at = f"parameters.{name}"
        if name == "binary_data_output":
            binary = _boolean(value, at)
        elif name == "timeout":
            timeout_us = _whole(value, at, "a whole number of microseconds")
        elif name == "priority":
            level = _whole(value, at, "a whole number")
            if level > PRIORITY_LEVELS:
                raise BadRequest(
                    f"{at} is {level}; levels go from 1 (highest) to {PRIORITY_LEVELS}, "
                    f"0 stands for {DEFAULT_LEVEL}",
                    param=at,
                )
            priority = DEFAULT_LEVEL - level if level else 0
        elif name in ("sequence_start", "sequence_end"):
            if _boolean(value, at):
                raise BadRequest(f"{at}: {_SEQUENCE}", param=at)
        elif name == "sequence_id":
            # Clients without a sequence may send its empty value.
            if type(value) not in (int, str):
                raise _expected(at, "a whole number or a string", value)
            if value:
                raise BadRequest(f"{at}: {_SEQUENCE}", param=at)
        elif name.startswith("triton_"):
            raise BadRequest(f"{at}: names that start with triton_ are reserved", param=at)
        else:
            raise _unknown(at, "binary_data_output, priority, timeout")
    return RequestParameters(priority, timeout_us, binary)


def wanted_outputs(
    given: list[Any], signature: Signature, index: Mapping[str, int]
) -> tuple[Wanted, ...]:
    """The listed outputs in their order. Raises BadRequest.

    As in Triton, a listed output without `binary_data` comes as JSON, whatever the request's
    `binary_data_output` says; the extension's text says otherwise.
    """
    seen: set[int] = set()
    found: list[Wanted] = []
    for number, entry in enumerate(given):
        where = f"outputs[{number}]"
        name = _object(entry, where).get("name")
        at = index.get(name) if type(name) is str else None
        if at is None:
            known = ", ".join(index)
            raise BadRequest(f"{where}.name is {name!r}; the model gives {known}", param=where)
        if at in seen:
            raise BadRequest(f"output {name!r} is asked for twice", param=where)
        seen.add(at)
        if len(entry) > 1 and not entry.keys() <= {"name", "parameters"}:
            raise _unknown_field(where, entry, ("name", "parameters"))
        parameters = entry.get("parameters")
        if parameters is None:
            found.append(Wanted(at, False, 0))
        else:
            found.append(_wanted(at, parameters, f"outputs[{number}].parameters", signature))
    return tuple(found)


def _wanted(index: int, given: Any, where: str, signature: Signature) -> Wanted:
    binary, classes = False, 0
    for name, value in _object(given, where).items():
        at = f"{where}.{name}"
        if name == "binary_data":
            binary = _boolean(value, at)
        elif name == "classification":
            classes = _whole(value, at, "a whole number of classes")
            if classes and signature.outputs[index].datatype == "BYTES":
                raise BadRequest(f"{at}: BYTES have no highest classes", param=at)
        elif name.startswith("shared_memory_"):
            raise BadRequest(f"{at}: {_SHARED_MEMORY}", param=at)
        else:
            raise _unknown(at, "binary_data, classification")
    return Wanted(index, binary, classes)


def binary_data_size(given: Any, where: str) -> int | None:
    """From an input's parameters. Raises BadRequest."""
    size = None
    for name, value in _object(given, where).items():
        at = f"{where}.{name}"
        if name == "binary_data_size":
            size = _whole(value, at, "a whole number of bytes")
        elif name.startswith("shared_memory_"):
            raise BadRequest(f"{at}: {_SHARED_MEMORY}", param=at)
        else:
            raise _unknown(at, "binary_data_size")
    return size


def _object(value: Any, at: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise _expected(at, "an object", value)
    return value


def _boolean(value: Any, at: str) -> bool:
    if type(value) is not bool:
        raise _expected(at, "true or false", value)
    return value


def _whole(value: Any, at: str, what: str) -> int:
    if type(value) is not int or value < 0:
        raise _expected(at, what, value)
    return value


def _expected(at: str, what: str, value: Any) -> BadRequest:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return BadRequest(f"{at} must be {what}, not {shown}", param=at)


def _unknown(at: str, known: str) -> BadRequest:
    return BadRequest(
        f"{at} is not known here and no model would see it; the parameters are {known}", param=at
    )


def _unknown_field(where: str, entry: dict[str, Any], known: tuple[str, ...]) -> BadRequest:
    name = next(name for name in entry if name not in known)
    return BadRequest(
        f"{where}.{name} is not known; the fields are {', '.join(known)}", param=f"{where}.{name}"
    )
