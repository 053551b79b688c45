"""Coherence: one number per layer for how the load stands. Pure functions of load shares.

Each says what it measures and where it is headed, because a controller that opens its gate on the wrong one steers the
wrong way.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def entropy(share_LE: Tensor, previous_LE: Tensor) -> Tensor:
    """1 - H(share)/ln E, in [0, 1]: 0 for a uniform load, 1 for one expert. It rises as load concentrates."""
    return 1.0 - torch.special.entr(share_LE).sum(dim=-1) / math.log(share_LE.shape[-1])


def alignment(share_LE: Tensor, previous_LE: Tensor) -> Tensor:
    """Mean cosine of a layer's deviation from the fair share with every other layer's, in [-1, 1].

    It compares experts by index, so it rises when the same indices are favoured throughout the stack; independent
    layers read 0 with standard deviation 1/sqrt((E - 1)(L - 1)). A layer without deviation reads 0.
    """
    deviation_LE = share_LE - 1.0 / share_LE.shape[-1]
    unit_LE = torch.nn.functional.normalize(deviation_LE, dim=-1)
    cosines_LL = unit_LE @ unit_LE.T
    return (cosines_LL.sum(dim=-1) - cosines_LL.diagonal()) / (share_LE.shape[0] - 1)


def stability(share_LE: Tensor, previous_LE: Tensor) -> Tensor:
    """1 - total variation distance from the previous reading's shares, in [0, 1]: 1 when the load stands still."""
    return 1.0 - 0.5 * (share_LE - previous_LE).abs().sum(dim=-1)


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "entropy": entropy,
    "alignment": alignment,
    "stability": stability,
}
"""(share now, share at the previous reading) -> coherence [L]."""


def phase_order(phase_LE: Tensor) -> Tensor:
    """Kuramoto order parameter |mean exp(i phase)| over all layers and experts, a scalar in [0, 1].

    Random phases read sqrt(pi / (4 L E)): it measures initial phases, not routing (see docs/laws.md).
    """
    return torch.stack((phase_LE.cos().mean(), phase_LE.sin().mean())).norm()
