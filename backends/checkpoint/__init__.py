"""Checkpoints: written by the trainer, read by backends, both through this package alone.

A step is committed at once or not at all, every byte of it is hashed, and what is served, resumed
or leased is never removed. Start with `Run`; write with `Staging` and `commit`; serve with
`read_channel`, `ReaderLease`, `verify` and `read_tensors`.
"""

from backends.checkpoint.channel import (
    ChannelEntry,
    ChannelRecord,
    channel_names,
    publish,
    read_channel,
    rollback,
)
from backends.checkpoint.commit import commit
from backends.checkpoint.disk import Disk
from backends.checkpoint.errors import (
    BadRecord,
    Busy,
    Cancelled,
    ChannelMoved,
    CheckpointError,
    CommitAborted,
    Corrupt,
    Incomplete,
    NoRollback,
    NoSuchStep,
    Quarantined,
    StepExists,
    Unreadable,
)
from backends.checkpoint.lease import LeaseRecord, ReaderLease, live_leases
from backends.checkpoint.liveness import Host
from backends.checkpoint.manifest import FileRecord, Manifest, Probe, TensorRecord
from backends.checkpoint.overview import StepRow, overview
from backends.checkpoint.quarantine import is_quarantined, quarantine
from backends.checkpoint.read import is_whole, read_tensors, verify
from backends.checkpoint.retention import clean, plan, prunable, prune
from backends.checkpoint.run import Run
from backends.checkpoint.staging import Failed, Part, Staging, find_ties

__all__ = [
    "BadRecord",
    "Busy",
    "Cancelled",
    "ChannelEntry",
    "ChannelMoved",
    "ChannelRecord",
    "CheckpointError",
    "CommitAborted",
    "Corrupt",
    "Disk",
    "Failed",
    "FileRecord",
    "Host",
    "Incomplete",
    "LeaseRecord",
    "Manifest",
    "NoRollback",
    "NoSuchStep",
    "Part",
    "Probe",
    "Quarantined",
    "ReaderLease",
    "Run",
    "Staging",
    "StepExists",
    "StepRow",
    "TensorRecord",
    "Unreadable",
    "channel_names",
    "clean",
    "commit",
    "find_ties",
    "is_quarantined",
    "is_whole",
    "live_leases",
    "overview",
    "plan",
    "prunable",
    "prune",
    "publish",
    "quarantine",
    "read_channel",
    "read_tensors",
    "rollback",
    "verify",
]
