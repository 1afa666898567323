"""torchrun's agent on this machine, as `launch` starts it: `python -m trainer.agent ARGUMENTS`.

Owns what becomes of the exceptions with which torchrun ends: a line and an exit status, as of any
command, where it would print its own stack. The ranks have said what went wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Returns the status of the rank that failed first, or 128 and the signal that ended it, or
    that this process was told to end by."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(list(arguments))
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        ended = f"signal {-code}" if code < 0 else f"status {code}"
        print(f"rank {rank} ended with {ended}, and no restart is left", file=sys.stderr)
        return 128 - code if code < 0 else code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
