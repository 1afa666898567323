"""The Open Inference Protocol v2, with Triton's extensions, as its clients use them.

`parse` and `render` are pure and know no HTTP; `surface` makes the lane's handlers of them. Models
come through the protocols in `directory`.
"""

from gateway.oip.codec import Codec
from gateway.oip.directory import Directory, Done, Gather, ModelView, Switchable
from gateway.oip.parse import InferRequest, parse_infer
from gateway.oip.render import Rendered, render_infer
from gateway.oip.statistics import ModelStats, VersionStats
from gateway.oip.surface import OipSurface

__all__ = [
    "Codec",
    "Directory",
    "Done",
    "Gather",
    "InferRequest",
    "ModelStats",
    "ModelView",
    "OipSurface",
    "Rendered",
    "Switchable",
    "VersionStats",
    "parse_infer",
    "render_infer",
]
