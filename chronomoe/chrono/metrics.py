"""Metrics of one optimizer step's load. Per layer first: layers are never pooled before a ratio.

Counts are global (summed over micro-batches and ranks) before any of these; a maximum of per-rank values would
overstate. A layer without tokens has no balance: it reads NaN.

Axes: L MoE layers, E experts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def max_vio(tokens_per_expert_LE: Tensor) -> Tensor:
    """max_e n_e / mean_e n_e - 1 per layer (arXiv 2408.15664), in [0, E/k - 1]; 0 is perfect balance.

    A balanced random router does not read 0 but about sqrt(2 (1 - k/E) ln E / n), n the mean count.
    """
    counts_LE = tokens_per_expert_LE.float()
    return counts_LE.amax(dim=-1) / counts_LE.mean(dim=-1) - 1.0


def min_vio(tokens_per_expert_LE: Tensor) -> Tensor:
    """1 - min_e n_e / mean_e n_e per layer, in [0, 1]; 1 when an expert got nothing."""
    counts_LE = tokens_per_expert_LE.float()
    return 1.0 - counts_LE.amin(dim=-1) / counts_LE.mean(dim=-1)


def load_cv(tokens_per_expert_LE: Tensor) -> Tensor:
    """Population standard deviation of the counts over their mean, per layer."""
    counts_LE = tokens_per_expert_LE.float()
    return counts_LE.std(dim=-1, correction=0) / counts_LE.mean(dim=-1)


def load_entropy(tokens_per_expert_LE: Tensor) -> Tensor:
    """H(share)/ln E per layer, in [ln k / ln E, 1]; 1 is a uniform load. Says nothing of a token's own confidence."""
    share_LE = tokens_per_expert_LE / tokens_per_expert_LE.sum(dim=-1, keepdim=True)
    return torch.special.entr(share_LE).sum(dim=-1) / math.log(tokens_per_expert_LE.shape[-1])


def count_idle_steps(idle_steps_LE: Tensor, tokens_per_expert_LE: Tensor) -> Tensor:
    """Optimizer steps since each expert last got a token."""
    return (idle_steps_LE + 1) * (tokens_per_expert_LE == 0)


def dead_expert_frac(idle_steps_LE: Tensor, dead_after_steps: int) -> Tensor:
    """Share of experts, per layer, without a token for at least `dead_after_steps` optimizer steps."""
    return (idle_steps_LE >= dead_after_steps).float().mean(dim=-1)
