"""The keys of who may use the gateway, for what, and how much: API keys and their limits.

Owns these keys, their defaults and their meaning, as `config` does the others. A key itself is
never written down: the file holds its hash, and `python -m gateway key NAME` makes both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.config_options import Flag, Number, Text, Texts, Whole, option

DAY_S = 86_400.0
# A tenant's name is a label of metrics.
_NAME = Text("a name of letters, digits and . _ -", r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
_HASH = r"[0-9a-f]{64}"
MAX_PRIORITY = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConfig:
    """`[[keys]]`: one API key. Its name is the tenant that its requests belong to."""

    name: str = option(_NAME, "names the tenant, in metrics too")
    key_sha256: tuple[str, ...] = option(
        Texts("SHA-256 of a key in hexadecimal: `python -m gateway key NAME` makes both", _HASH),
        "hashes of the key; two while it is exchanged for another",
    )
    models: tuple[str, ...] | None = option(
        Texts("names of models"), "that it may use; left out, all", default=None
    )
    weight: float = option(
        Number(above=0.0, most=1e6), "its share beside other tenants that wait", default=1.0
    )
    priority: int = option(
        Whole(-MAX_PRIORITY, MAX_PRIORITY), "the highest that its requests may have", default=0
    )
    requests_per_s: float | None = option(
        Number(above=0.0, most=1e7), "left out, any number", default=None
    )
    tokens_per_minute: float | None = option(
        Number(above=0.0, most=1e12), "of prompts and answers; left out, any number", default=None
    )
    burst_s: float = option(
        Number(above=0.0, most=DAY_S),
        "what was not used of so long may be used at once",
        default=10.0,
    )
    concurrency: int | None = option(
        Whole(1, 10_000_000), "requests that have not ended; left out, any number", default=None
    )
    manage: bool = option(Flag(), "it may load and unload models (/v2/repository)", default=False)


def wrong_keys(keys: Sequence[KeyConfig], models: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(position, key, what is wrong) of keys that a whole file shows."""
    names: set[str] = set()
    hashes: dict[str, str] = {}
    for index, key in enumerate(keys):
        if key.name in names:
            yield index, "name", f'another key is named "{key.name}"'
        names.add(key.name)
        for digest in key.key_sha256:
            if digest in hashes:
                yield index, "key_sha256", f'"{hashes[digest]}" has the same key'
            hashes[digest] = key.name
        for model in key.models or ():
            if model not in models:
                known = ", ".join(models) or "none"
                yield index, "models", f'there is no model "{model}"; known: {known}'
