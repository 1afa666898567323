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

__all__ = [
    "Batch",
    "Datasets",
    "HeldOutBatches",
    "Piece",
    "Source",
    "Split",
    "Tensors",
    "TrainBatches",
    "TrainingData",
    "open_data",
    "pieces",
]
