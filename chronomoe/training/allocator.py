"""Keep memory that was freed: what a training step frees, the next one needs again.

glibc hands a large block back to the kernel when it is freed, and the kernel zeroes every page of the next one again,
which costs about as much as copying it four times. A step of a language model frees and takes hundreds of megabytes,
the same ones every time.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
NEVER = 2**31 - 1


def give_back_freed_memory() -> None:
    """Once, now; nothing where there is no glibc."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> bool:
    """Serve large blocks from the heap and never shrink it, for the rest of this process. False where there is no
    glibc to ask (macOS, musl), or it refuses."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
