"""The CPU's fast path: one step of a decoder in one C++ function, compiled where it will run."""

from backends.llm.native.library import Library, Unavailable, load

__all__ = ["Library", "Unavailable", "load"]
