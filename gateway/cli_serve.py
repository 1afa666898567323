"""`python -m gateway serve`: builds the supervisor of one configuration and runs it.

The only wiring of the supervisor process. What the admin listener and the metrics need is imported
late, when the supervisor first calls for it: the workers are started before.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway import compiled
from gateway.config import ConfigError, ServerConfig
from gateway.listening import ListenError, Listening
from gateway.metrics import Family
from gateway.operations import Operations
from gateway.replica_files import look_at
from gateway.settings import Settings
from gateway.supervisor import AdminServer, Supervisor

log = logging.getLogger("penstock.gateway")


def serve(file: Path, overrides: Sequence[str]) -> int:
    try:
        settings = Settings.read(file, overrides)
    except ConfigError as error:
        print(f"{error}\nnothing was started", file=sys.stderr)
        return 2
    # A replica that cannot serve is worth an answer now, not a process that dies again and again.
    looked = look_at(settings.config)
    if wrong := [finding for finding in looked.findings if finding.wrong]:
        print(*wrong, "nothing was started", sep="\n", file=sys.stderr)
        return 2
    log_to_stderr(settings.config.server.log_level)
    for finding in looked.findings:
        log.warning("%s", finding)
    if compiled.missing():
        log.info("interpreted; after `python -m gateway compile` workers take up to twice the load")
    try:
        return asyncio.run(_serve(settings))
    except ListenError as error:
        print(f"{error}\nnothing was started", file=sys.stderr)
        return 1


async def _serve(settings: Settings) -> int:
    supervisor = Supervisor(
        settings, open_admin, version=_version(), render=render, look_at=look_at
    )
    return await supervisor.run()


async def open_admin(
    operations: Operations, listening: Listening, server: ServerConfig
) -> AdminServer:
    from gateway.admin import Admin

    return await Admin.open(operations, listening, server)


def render(families: list[Family]) -> str:
    from gateway.exposition import render

    return render(families)


class _Format(logging.Formatter):
    """`12:00:01 info    digits-0: …`: who said it is the replica's, the worker's or our name."""

    def format(self, record: logging.LogRecord) -> str:
        who = record.name.removeprefix("penstock.")
        at = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return f"{at} {record.levelname.lower():7} {who}: {text}"


def log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("penstock")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
