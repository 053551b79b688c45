"""What one optimizer step's routing looked like, over all micro-batches and ranks.

The model's sensor adds integers, so the observation is the same however the step's tokens were split. Gathering it is
one all-reduce of one small tensor, and no host waits for it.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from chronomoe.model.moe import GATE_MASS_UNIT


class Observation(NamedTuple):
    tokens_per_expert_LE: Tensor
    """int64 assignments of this step."""
    gate_mass_LE: Tensor
    """fp64 sum of the mixing weights given to each expert in this step."""


def read_sensor(routing_2LE: Tensor) -> Observation:
    """The observation a sensor tensor (assignments, gate mass in fixed point) stands for."""
    return Observation(routing_2LE[0], routing_2LE[1].double() / GATE_MASS_UNIT)


def gather_and_clear(routing_2LE: Tensor) -> Observation:
    """Sum the sensor over all ranks and zero it for the next step. Every rank gets the same observation."""
    total_2LE = routing_2LE.clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total_2LE)
    routing_2LE.zero_()
    return read_sensor(total_2LE)


def share(amount_LE: Tensor) -> Tensor:
    """Normalise to sum 1 over experts, in fp32; an empty row reads the fair share 1/E."""
    total_L1 = amount_LE.sum(dim=-1, keepdim=True)
    fair = 1.0 / amount_LE.shape[-1]
    return (amount_LE / total_L1).where(total_L1 > 0, fair).float()


def remember(memory_LE: Tensor, amount_LE: Tensor, half_life_steps: float | None) -> Tensor:
    """Leaky sum m <- 2^(-1/half_life) m + amount; with no half-life it never forgets.

    Its *share* is that of the bias-corrected EMA of the amounts, because the correction cancels in the ratio: the first
    reading is the first sample.
    """
    keep = 1.0 if half_life_steps is None else 0.5 ** (1.0 / half_life_steps)
    return keep * memory_LE + amount_LE
