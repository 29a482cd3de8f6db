"""Memory of models that come and go, given back to the system: switches of glibc's allocator.

Source: mallopt(3), M_MMAP_THRESHOLD, and malloc_trim(3).
"""

from __future__ import annotations

import ctypes

# The number of glibc's switch, and from how many bytes on a block is one of its own.
_MMAP_THRESHOLD = -3
_LARGE_BYTES = 2**18


def tune_allocator() -> bool:
    """Have large blocks given back when they are freed; False where the C library has no such switch.

    glibc raises its threshold for blocks of their own to the largest that was freed, up to 32 MiB. Models that come and
    go, and batches of all sizes, then leave holes in the heap. Once set, it stays.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES))
    except AttributeError:
        return False


def give_back() -> bool:
    """Give back what small blocks that were freed have left; False where there is nothing, or the library can't.

    Each thread that loads a model may do so in another of glibc's heaps, which keep what is not at their end. Takes
    milliseconds, in which other threads may wait for a block.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except AttributeError:
        return False
