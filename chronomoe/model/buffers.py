"""Large buffers that every training step needs again, lent and taken back instead of freed.

glibc aligns a large block inside a larger one, so the hole that a freed block leaves is too small for the next block of
the same size: a process that frees and takes the same sizes every step grows for hundreds of steps. A buffer lent
here comes back by itself when no tensor shares its storage any more, autograd's graph and gradients included.
"""

from __future__ import annotations

import weakref
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

SMALLEST = 2**20
"""Bytes; what is smaller is left to the allocator."""
LARGER = 1.25
"""A buffer is also lent to who needs a little less: routing makes sizes vary from step to step."""
ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector of a processor."""


class Buffers:
    def __init__(self) -> None:
        self.free: dict[int, list[np.ndarray]] = defaultdict(list)

    def lend(self, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor of this shape, where `like` is and, if not told otherwise, of its dtype."""
        dtype = dtype or like.dtype
        size = torch.Size(shape).numel() * dtype.itemsize
        if like.device.type != "cpu" or size < SMALLEST:
            return like.new_empty(shape, dtype=dtype)
        fits = (known for known, free in self.free.items() if free and size <= known <= LARGER * size)
        known = min(fits, default=0)
        memory = self.free[known].pop() if known else aligned(size)
        lent = memory[:size]  # torch keeps this object for as long as a storage over it lives
        weakref.finalize(lent, self.free[len(memory)].append, memory).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)


def aligned(size: int) -> np.ndarray:
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size]


BUFFERS = Buffers()
"""One for the process, as an allocator is; a GPU has a caching allocator of its own."""
