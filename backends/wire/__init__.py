"""The wire between a gateway and a native replica: frames over one stream socket (UDS or TCP).

The gateway imports this package and nothing else from `backends`; it opens no socket and loads no
torch. `frames` has the bytes, `messages` their meaning, `tensors` the types they carry.
"""

from backends.wire.frames import (
    HEADER,
    MAGIC,
    MAX_FRAME,
    SCRATCH,
    VERSION,
    Buffer,
    Decoder,
    Frame,
    Kind,
    WireError,
    encode,
)
from backends.wire.messages import (
    GENERATIVE,
    SURFACES,
    Call,
    Fault,
    Piece,
    Status,
    TensorHead,
    execute_meta,
    result_meta,
    split_stream,
    stream_frame,
)
from backends.wire.tensors import DATATYPES, Datatype, Signature, TensorSpec, length_bucket

__all__ = [
    "DATATYPES",
    "GENERATIVE",
    "HEADER",
    "MAGIC",
    "MAX_FRAME",
    "SCRATCH",
    "SURFACES",
    "VERSION",
    "Buffer",
    "Call",
    "Datatype",
    "Decoder",
    "Fault",
    "Frame",
    "Kind",
    "Piece",
    "Signature",
    "Status",
    "TensorHead",
    "TensorSpec",
    "WireError",
    "encode",
    "execute_meta",
    "length_bucket",
    "result_meta",
    "split_stream",
    "stream_frame",
]
