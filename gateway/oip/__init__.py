"""The Open Inference Protocol v2, as its clients use it."""
