"""Metrics of load: of one optimizer step, of a history of steps, of a whole evaluation.

    MaxVio = max_e n_e / mean_e n_e - 1  (arXiv 2408.15664; its mean and supremum over steps: arXiv 2502.15451)
Per layer first: layers are never pooled before a ratio. Counts are assignments before any is dropped, and global
(summed over micro-batches and ranks) before any of these; a maximum of per-rank values would overstate. Gate mass is
another quantity with functions of its own. A layer without tokens has no balance: it reads NaN.

Axes: N steps, L MoE layers, E experts, T tokens, K experts per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FALSE_ALARM = 1e-6
"""A window is long enough to call experts dead when a balanced random router leaves one unused less often than this."""


def gate_mass_share(
    topk_expert_ids_TK: Tensor, topk_weights_TK: Tensor, num_experts: int, real_T: Tensor | None = None
) -> Tensor:
    """Each expert's share of all mixing weight, fp64 [E], summing to 1; NaN when no weight was given to anybody.

    It equals the share of the assignments only if every assignment weighs the same.
    """
    mass_TK = topk_weights_TK.double()
    if real_T is not None:
        mass_TK = mass_TK.masked_fill(~real_T[:, None], 0.0)
    mass_E = mass_TK.new_zeros(num_experts).scatter_add_(0, topk_expert_ids_TK.flatten(), mass_TK.flatten())
    return mass_E / mass_E.sum()


def max_vio(tokens_per_expert_LE: Tensor) -> Tensor:
    """max_e n_e / mean_e n_e - 1 per layer (arXiv 2408.15664), in [0, E/k - 1]; 0 is perfect balance.

    A balanced random router does not read 0 but about sqrt(2 (1 - k/E) ln E / n), n the mean count.
    """
    counts_LE = tokens_per_expert_LE.float()
    return counts_LE.amax(dim=-1) / counts_LE.mean(dim=-1) - 1.0


def avg_max_vio(tokens_per_expert_NLE: Tensor) -> Tensor:
    """Mean over steps of each step's MaxVio, per layer. It keeps the finite-sample floor of one step.

    MaxVio is convex, so `max_vio` of the steps' summed counts (MaxVio_global) never exceeds it while the steps hold
    equally many tokens. Steps without tokens are left out.
    """
    return max_vio(tokens_per_expert_NLE).nanmean(dim=0)


def sup_max_vio(tokens_per_expert_NLE: Tensor) -> Tensor:
    """The largest MaxVio of any step, per layer; its floor grows with the number of steps."""
    vio_NL = max_vio(tokens_per_expert_NLE)
    return vio_NL.nan_to_num(-math.inf).amax(dim=0).where(vio_NL.isfinite().any(dim=0), math.nan)


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


def dead_window_tokens(num_experts: int, top_k: int) -> int:
    """The shortest window, in tokens, whose silence says "dead": the least W with E (1 - k/E)^W < FALSE_ALARM."""
    if top_k >= num_experts:
        return 1
    return math.floor(math.log(FALSE_ALARM / num_experts) / math.log1p(-top_k / num_experts)) + 1


def unused_expert_frac(tokens_per_expert_LE: Tensor, tokens: Tensor | int) -> Tensor:
    """Share of experts, per layer, that none of a window's `tokens` chose, in [0, 1 - k/E].

    NaN for a window shorter than `dead_window_tokens`, in which an expert may be unused by chance.
    """
    num_experts = tokens_per_expert_LE.shape[-1]
    missed_L = 1.0 - tokens_per_expert_LE.sum(dim=-1).double() / (tokens * num_experts)  # by one token: 1 - k/E
    by_chance_L = num_experts * missed_L**tokens
    return (tokens_per_expert_LE == 0).double().mean(dim=-1).where(by_chance_L < FALSE_ALARM, math.nan)
