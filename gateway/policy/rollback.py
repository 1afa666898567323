"""From which version an operator goes back who does not name it.

Pure: what each replica has just said comes in. Invariant: all replicas are told the same version,
which is the newest that any of them has seen; so that who has seen less goes no further back, and
two operators at once mean the same one.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple


class Said(NamedTuple):
    """Of a replica's STATUS: what its channel has it serve, in which generation of the channel, and
    all versions that it serves or goes to."""

    channel: str
    goal: str
    generation: int
    versions: frozenset[str] = frozenset()


class Unclear(Exception):
    """There is no one version to go back from; the message says why."""


def is_named(version: str, name: str) -> bool:
    """A version goes by its whole name or by its step."""
    return name in (version, version.partition("-")[0])


def newest(said: Collection[Said], canary: str | None) -> str:
    """`canary` is the channel of a version on trial: where that is another one than all others'
    channel has, it is what goes back. Raises Unclear."""
    goals: dict[str, Said] = {}
    for each in said:
        known = goals.get(each.channel)
        if each.goal and (known is None or known.generation < each.generation):
            goals[each.channel] = each
    versions = {channel: each.goal for channel, each in goals.items()}
    if not versions:
        raise Unclear("no replica follows a channel that has a version")
    if canary in versions and len({*versions.values()}) > 1:
        return versions[canary]
    if len({*versions.values()}) > 1:
        text = ", ".join(f"{channel} is at {version}" for channel, version in versions.items())
        raise Unclear(f"the replicas follow several channels: {text}; say from which version")
    return next(iter(versions.values()))


def resolve(said: Collection[Said], name: str) -> str:
    """The one version that an operator names. Raises Unclear."""
    known = {version for each in said for version in (*each.versions, each.goal) if version}
    found = {version for version in known if is_named(version, name)}
    if len(found) != 1:
        raise Unclear(
            f"no replica serves or loads version {name!r}; known: {', '.join(sorted(known)) or '-'}"
            if not found
            else f"version {name!r} could be {', '.join(sorted(found))}"
        )
    return next(iter(found))
