"""Two routings that are known beforehand: the ceiling and the floor of every measure of expert specialisation.

The oracle sends a token where its domain says and nothing else; the random one sends it anywhere. A labelled domain mix
with a reference router is the idea of the MoE Routing Testbed (arXiv 2604.07030).

Sizes: T tokens, K picks, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def oracle_expert_ids(domains_T: Tensor, num_experts: int, top_k: int, num_domains: int) -> Tensor:
    """Expert ids, int64 [T, K], of the ideal specialised routing.

    Experts are dealt in turn to G = min(num_domains, num_experts // top_k) groups, so that each has top_k or more, and
    domains are dealt in turn to the groups. A group's tokens take its experts in rotation, top_k at a time. When
    num_experts // top_k >= num_domains every domain has experts of its own: the expert tells the domain, and the mutual
    information of both is the entropy of the domains. Else domains share groups. Loads of equally frequent domains are
    equal, within a group always and to at most one token, between groups when G divides experts and domains.
    """
    assert 1 <= top_k <= num_experts
    num_groups = min(num_domains, num_experts // top_k)
    group_T = domains_T % num_groups
    sizes_T = (num_experts - group_T + num_groups - 1) // num_groups
    order_T = torch.argsort(group_T, stable=True)
    starts_G = torch.searchsorted(group_T[order_T], torch.arange(num_groups))
    turn_T = torch.empty_like(group_T)
    turn_T[order_T] = torch.arange(len(group_T)) - starts_G[group_T[order_T]]  # how many of the group came before
    picks_TK = (turn_T[:, None] * top_k + torch.arange(top_k)) % sizes_T[:, None]
    return picks_TK * num_groups + group_T[:, None]


def random_expert_ids(num_tokens: int, num_experts: int, top_k: int, seed: int) -> Tensor:
    """Expert ids, int64 [T, K], of a routing that does not look at the token: every set of top_k experts alike."""
    scores_TE = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    return scores_TE.topk(top_k, dim=1).indices
