"""Ranges of code points as sequences of ranges of bytes: what one character is in UTF-8.

Pure; after Russ Cox's way of splitting a range where its encodings change length or carry over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backends.llm.structured.grammar import SURROGATES

ByteRange = tuple[int, int]
_ENDS = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)


def utf8_ranges(low: int, high: int) -> Iterator[Sequence[ByteRange]]:
    """Byte sequences that together encode exactly the characters from `low` to `high`."""
    if low > high:
        return
    if low <= SURROGATES[1] and high >= SURROGATES[0]:
        yield from utf8_ranges(low, SURROGATES[0] - 1)
        yield from utf8_ranges(SURROGATES[1] + 1, high)
        return
    for end in _ENDS:
        if low <= end < high:
            yield from utf8_ranges(low, end)
            yield from utf8_ranges(end + 1, high)
            return
    if high > 0x7F:
        for bits in (6, 12, 18):
            tail = (1 << bits) - 1
            if low & ~tail != high & ~tail:
                # Bytes below this place must be free to be anything, or the parts go apart.
                if low & tail:
                    yield from utf8_ranges(low, low | tail)
                    yield from utf8_ranges((low | tail) + 1, high)
                    return
                if high & tail != tail:
                    yield from utf8_ranges(low, (high & ~tail) - 1)
                    yield from utf8_ranges(high & ~tail, high)
                    return
    yield list(zip(chr(low).encode(), chr(high).encode(), strict=True))
