"""The generator's process: a spec on standard input, JSON lines of progress and one report out.

Owns the process. It stands apart from whoever shows the figures, so that drawing a screen delays
no request. SIGTERM ends the load early: the report then holds what was found until then.
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from typing import Any

from bench.load.drive import CannotConnect, Drive
from bench.load.spec import LoadSpec


def _say(kind: str, value: Any) -> None:
    sys.stdout.write(json.dumps({kind: value}) + "\n")
    sys.stdout.flush()


async def _run(asked: dict[str, Any]) -> None:
    spec = LoadSpec.from_json(asked["spec"])
    drive = Drive(spec, (lambda found: _say("progress", found)) if asked["progress"] else None)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, drive.stop)
    report = await drive.run()
    _say("report", report.to_json())


def main() -> int:
    asked = json.loads(sys.stdin.read())
    # What a run makes is freed by its reference counts; a collection would delay requests.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
            runner.run(_run(asked))
    except (CannotConnect, ValueError, OSError) as error:
        _say("error", str(error))
        return 1
    return 0


def _fastest_loop() -> Any:
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


if __name__ == "__main__":
    sys.exit(main())
