"""Bytes as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """ "812 B", "1.5 KiB", "3.0 MiB" """
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"
