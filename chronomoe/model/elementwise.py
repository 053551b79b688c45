"""Element-wise parts, as they are or compiled into one kernel.

On a GPU every small operation reads and writes its whole tensor through memory once; compiled, a chain of them does so
once in all. On a processor blocks stay in the cache and torch's own operations are as fast (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@cache
def compiled(function: Function) -> Function:
    """One compilation serves all layers and lengths."""
    fused: Function = torch.compile(function, dynamic=True)
    return fused


def as_chosen(function: Function, elementwise: str) -> Function:
    """`elementwise`: eager or compiled."""
    return compiled(function) if elementwise == "compiled" else function
