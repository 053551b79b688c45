"""Sums and means over the processes of a run; alone, a process is its own sum.

Every process must call these at the same place. The argument is left as it is, and all get the same result.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_processes(mine: Tensor) -> Tensor:
    total = mine.clone()
    if num_processes() > 1:
        dist.all_reduce(total)
    return total


def mean_over_processes(mine: Tensor) -> Tensor:
    return sum_over_processes(mine) / num_processes()
