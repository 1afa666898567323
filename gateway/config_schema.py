"""The configuration as a JSON Schema, for editors and for checks outside of the gateway.

Pure: everything comes from the dataclasses of `config`. What no single key shows (equal names,
either `spawn` or `address`) is for `python -m gateway check`.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from gateway.config import FileTable


def json_schema() -> dict[str, Any]:
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Penstock gateway",
        **_table(FileTable),
    }


def _table(cls: type) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for item in fields(cls):
        if not item.metadata:
            continue
        properties[item.name] = _property(item)
        if "option" in item.metadata and item.default is MISSING:
            required.append(item.name)
    table = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**table, "required": required} if required else table


def _property(item: Field[Any]) -> dict[str, Any]:
    meta = item.metadata
    if "table" in meta:
        return _table(meta["table"])
    if "tables" in meta:
        return {"type": "array", "items": _table(meta["tables"])}
    schema = {**meta["option"].schema(), "description": meta["doc"]}
    if item.default is not MISSING and item.default is not None:
        schema["default"] = item.default
    return schema
