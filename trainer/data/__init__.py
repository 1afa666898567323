"""Data sets and their split into batches: tensors, texts, conversations and tables of interactions.

`batches` says which samples a rank takes; the other modules are classes for `data.class`.
"""

from trainer.data.batches import (
    Batch,
    Datasets,
    HeldOutBatches,
    Piece,
    Source,
    Split,
    Tensors,
    TrainBatches,
    TrainingData,
    open_data,
    pieces,
)
from trainer.data.interactions import Interactions
from trainer.data.text import Chat, Text

__all__ = [
    "Batch",
    "Chat",
    "Datasets",
    "HeldOutBatches",
    "Interactions",
    "Piece",
    "Source",
    "Split",
    "Tensors",
    "Text",
    "TrainBatches",
    "TrainingData",
    "open_data",
    "pieces",
]
