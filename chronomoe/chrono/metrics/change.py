"""How far the selection of one fixed probe batch has moved between two readings of it.

    churn = 1 - mean_t |S_t & S'_t| / k ;  saturation = (s - c)/(1 - c), s = mean_t |S_t & S^ref_t| / k
    independent selections agree by chance:  c = sum_e a_e a'_e / k,  a_e = the share of tokens that chose e
Both selections must be of the same tokens, in the same order, without dropout or jitter. Taken from clean selections
churn says that the weights moved; taken from steered selections at frozen weights, that the controller did: report them
apart. Saturation (OLMoE, arXiv 2409.02060) compares with an anchor, usually the final checkpoint.

Axes: T tokens, K experts per token, E experts; any leading axes, such as layers, are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def selection_map(topk_expert_ids_TK: Tensor, num_experts: int, assigned_TK: Tensor | None = None) -> Tensor:
    """Whether each token is assigned to each expert, bool [..., T, E]; False in `assigned_TK` is a candidate only."""
    if assigned_TK is None:
        assigned_TK = torch.ones_like(topk_expert_ids_TK, dtype=torch.bool)
    return assigned_TK.new_zeros(*topk_expert_ids_TK.shape[:-1], num_experts).scatter_(
        -1, topk_expert_ids_TK, assigned_TK
    )


def agreement(before_TK: Tensor, now_TK: Tensor, num_experts: int, real_T: Tensor | None = None) -> Tensor:
    """s: the mean share of a token's k experts that both selections have, fp64 in [0, 1]; NaN without tokens."""
    both_TE = selection_map(before_TK, num_experts) & selection_map(now_TK, num_experts)
    return average_tokens(both_TE, real_T).sum(dim=-1) / before_TK.shape[-1]


def chance_agreement(before_TK: Tensor, now_TK: Tensor, num_experts: int, real_T: Tensor | None = None) -> Tensor:
    """c: the `agreement` of two selections with these loads that know nothing of each other; k/E if balanced."""
    rate_E, other_E = (average_tokens(selection_map(ids, num_experts), real_T) for ids in (before_TK, now_TK))
    return (rate_E * other_E).sum(dim=-1) / before_TK.shape[-1]


def churn(before_TK: Tensor, now_TK: Tensor, num_experts: int, real_T: Tensor | None = None) -> Tensor:
    """Share of the choices that changed, in [0, 1]: 0 when nothing moved, `churn_null` when nothing is left."""
    return 1.0 - agreement(before_TK, now_TK, num_experts, real_T)


def churn_null(before_TK: Tensor, now_TK: Tensor, num_experts: int, real_T: Tensor | None = None) -> Tensor:
    """What `churn` reads for independent selections with these loads: 1 - sum_e a_e a'_e / k."""
    return 1.0 - chance_agreement(before_TK, now_TK, num_experts, real_T)


def saturation(now_TK: Tensor, anchor_TK: Tensor, num_experts: int, real_T: Tensor | None = None) -> Tensor:
    """Agreement with the anchor beyond chance: 1 is the anchor's routing, 0 is chance, less than 0 avoids it.

    NaN when chance alone agrees everywhere (every token has the same k experts in both): nothing can be learnt then.
    """
    chance = chance_agreement(now_TK, anchor_TK, num_experts, real_T)
    room = 1.0 - chance
    return ((agreement(now_TK, anchor_TK, num_experts, real_T) - chance) / room).where(room > 1e-12, math.nan)


def average_tokens(map_TE: Tensor, real_T: Tensor | None) -> Tensor:
    """Share of the real tokens for which the map is true, fp64 [..., E]."""
    if real_T is None:
        return map_TE.double().mean(dim=-2)
    return (map_TE & real_T[:, None]).sum(dim=-2).double() / real_T.sum()
