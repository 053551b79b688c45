"""Three memories of one coherence phi, fast, mid and slow, and how long each expert has been without a reading.

    m <- a m + (1 - a) phi ;  W <- a W + (1 - a) ;  reading m / W          (a = .9, .99, .999 per step)
The first reading is the first sample: without W a memory that starts at zero says for hundreds of steps that every
expert degrades. An expert without a reading keeps m and W and ages; what it last said is not evidence about now.

Axes: M memories (fast, mid, slow), L MoE layers, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DECAYS = (0.9, 0.99, 0.999)
"""Half-lives of 6.6, 69 and 693 readings."""

State = dict[str, Tensor]


class Remembered(NamedTuple):
    """What the memories say; NaN before an expert's first reading."""

    fast_LE: Tensor
    mid_LE: Tensor
    slow_LE: Tensor
    degradation_LE: Tensor
    """fast - slow: negative while an expert agrees less with the others than it used to; 0 at its first reading."""
    stale_steps_LE: Tensor
    """int64 steps since the expert's last reading (or the start); 0 means it was read in this step."""


def start(num_layers: int, num_experts: int) -> State:
    """An empty memory on the CPU."""
    shape = (num_layers, num_experts)
    return {
        "phi_sum_MLE": torch.zeros(len(DECAYS), *shape),
        "phi_weight_MLE": torch.zeros(len(DECAYS), *shape),
        "phi_stale_steps_LE": torch.zeros(shape, dtype=torch.int64),
    }


def step(state: State, phi_LE: Tensor) -> State:
    """Remember one step's phi; NaN is no reading. Pure: the given state stays as it is."""
    read_LE = phi_LE.isfinite()
    sums, weights = [], []
    for decay, sum_LE, weight_LE in zip(DECAYS, state["phi_sum_MLE"], state["phi_weight_MLE"], strict=True):
        sums.append(torch.where(read_LE, decay * sum_LE + (1.0 - decay) * phi_LE, sum_LE))
        weights.append(torch.where(read_LE, decay * weight_LE + (1.0 - decay), weight_LE))
    return {
        "phi_sum_MLE": torch.stack(sums),
        "phi_weight_MLE": torch.stack(weights),
        "phi_stale_steps_LE": (state["phi_stale_steps_LE"] + 1).masked_fill(read_LE, 0),
    }


def read(state: State) -> Remembered:
    fast_LE, mid_LE, slow_LE = state["phi_sum_MLE"] / state["phi_weight_MLE"]
    return Remembered(fast_LE, mid_LE, slow_LE, fast_LE - slow_LE, state["phi_stale_steps_LE"])
