"""Models as plain `nn.Module`s: what the trainer trains and the importer fills.

Each follows `backends.model.TrainableModel`, `ServedModel` or both, and names its tensors as the
Hugging Face model of that kind does, so that a published checkpoint is one that others can load.
"""
