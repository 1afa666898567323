"""The trainer: `python -m trainer CONFIG key=value…`, alone or on all ranks of torchrun."""
