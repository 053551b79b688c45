"""What a token's routing says, from clean logits and visited experts: pure functions, vectorised over layers.

    H = -sum_e p_e ln p_e ;  Hn = mean_l H_l / ln E ;  C = 1 - Hn ;  m_r = mean_l p_(1) - p_(2)
    H_use = H(mean_t p_t) ;  I = H_use - mean_t H(p_t) >= 0 ;  J_t = mean_l |A_t ∩ A_(t-1)| / |A_t ∪ A_(t-1)|
H of single tokens is confidence, H_use is balance: one never stands for the other (both in nats).

Axes: S tokens, L MoE layers, E experts, K experts per token.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from chronomoe.session.reading import Floats, Integers


class Margins(NamedTuple):
    """Per token and layer; each is at least 0."""

    probability_SL: Floats
    """p_(1) - p_(2), in [0, 1]."""
    logit_SL: Floats
    """z_(1) - z_(2), nats."""
    boundary_SL: Floats
    """z_(K) - z_(K+1), nats: how far the last expert that is visited is ahead of the first that is not."""


def entropy(p_E: Floats) -> Floats:
    """Nats, over the last axis; 0 ln 0 is 0."""
    result: Floats = -(p_E * np.log(np.where(p_E > 0, p_E, 1.0))).sum(axis=-1)
    return result


def margins(p_SLE: Floats, z_SLE: Floats, top_k: int) -> Margins:
    """Taken from the sorted distributions, never from the order in which a family lists its experts. K < E."""
    p_sorted, z_sorted = np.sort(p_SLE, axis=-1), np.sort(z_SLE, axis=-1)
    return Margins(
        p_sorted[..., -1] - p_sorted[..., -2],
        z_sorted[..., -1] - z_sorted[..., -2],
        z_sorted[..., -top_k] - z_sorted[..., -top_k - 1],
    )


def usage_and_information(p_SLE: Floats) -> tuple[Floats, Floats]:
    """(H_use [L], mutual information of token and expert [L]) of a stretch of tokens, in nats."""
    usage_L = entropy(p_SLE.mean(axis=0))
    return usage_L, np.maximum(usage_L - entropy(p_SLE).mean(axis=0), 0.0)


def persistence(ids_LK: Integers, previous_LK: Integers) -> float:
    """J of two tokens in a row, in [0, 1]; ids are distinct within a layer."""
    shared_L = (ids_LK[:, :, None] == previous_LK[:, None, :]).sum(axis=(1, 2))
    return float((shared_L / (2 * ids_LK.shape[1] - shared_L)).mean())


def persistence_by_chance(num_experts: int, top_k: int) -> float:
    """What J reads for sets drawn independently and uniformly: the overlap is hypergeometric."""
    ways = math.comb(num_experts, top_k)
    return sum(
        math.comb(top_k, shared) * math.comb(num_experts - top_k, top_k - shared) / ways * shared / (2 * top_k - shared)
        for shared in range(1, top_k + 1)
    )
