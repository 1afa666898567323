"""Quarantine: versions that were found bad, by manifest hash; nobody publishes or loads them again.

Owns `<run>/quarantine/<hash>.json`, one record a hash: the first finding stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backends.checkpoint.errors import BadRecord
from backends.checkpoint.records import read_record, seal
from backends.checkpoint.run import Run

_HASH = re.compile(r"[0-9a-f]{32}")


def quarantine(run: Run, hash: str, why: Mapping[str, Any]) -> None:
    """`why` says what was found: {"path", "expected", "found"}, or {"reason": …}. Idempotent."""
    path = _path(run, hash)
    run.disk.make_folders(run.quarantine)
    with run.lock():
        if not path.exists():
            record = {"hash": hash, "why": dict(why), "at": run.host.wall()}
            run.disk.write_file(path, seal(record))


def is_quarantined(run: Run, hash: str) -> bool:
    """True also when the record is damaged: doubt is no reason to serve."""
    return _path(run, hash).exists()


def reason(run: Run, hash: str) -> Mapping[str, Any] | None:
    """Why, None if it is not in quarantine."""
    try:
        record = read_record(_path(run, hash))
    except BadRecord as error:
        return {"reason": str(error)}
    why = (record or {}).get("why")
    return why if isinstance(why, dict) else None


def _path(run: Run, hash: str) -> Path:
    if not _HASH.fullmatch(hash):
        raise BadRecord(f"{hash!r} is not a manifest hash (32 hexadecimal digits)")
    return run.quarantine / f"{hash}.json"
