"""Assignments solved within a batch, so that every expert gets its share of exactly these tokens.

BIP, arXiv 2502.15451, T_it rounds of dual descent from the prices q of the batch before:
    pi_t = max(0, (k+1)-th largest over e of (s_te - q_e))
    q_e = max(0, (kT/E + 1)-th largest over t of (s_te - pi_t))
    select the top-k of s - q
Sinkhorn, as in Megatron-LM (S-BASE, arXiv 2202.01169), A = exp(z), d1 = 1, until mean |change of d1| < tolerance:
    d0_t = 1 / (T sum_e d1_e A_te) ;  d1_e = 1 / (E sum_t d0_t A_te) ;  select the top-k of d0 A d1
Both look at the whole batch, tokens to come included: they break causality and are no rule for decoding.

Axes: T tokens, E experts, N real tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-8
"""Added to Sinkhorn's sums, as published, so that an expert nobody wants has a finite scale."""


def upper_quantile(values_TE: Tensor, per_expert: float, real_T: Tensor | None) -> Tensor:
    """For each expert the value that `per_expert` * (number of real tokens) of its column exceed, fp32 [E].

    With r = per_expert * N this is the (r + 1)-th largest; a fractional r interpolates. Ties apart, exactly r tokens
    lie above it. Nothing waits for the host.
    """
    if real_T is not None:
        values_TE = values_TE.masked_fill(~real_T[:, None], float("-inf"))
    falling_TE = values_TE.sort(dim=0, descending=True).values
    num_real = real_T.sum() if real_T is not None else torch.full((), len(values_TE), device=values_TE.device)
    rank = (per_expert * num_real.double()).clamp(max=(num_real - 1).clamp(min=0).double())
    low, high = rank.floor().long(), rank.ceil().long()
    above_E, below_E = (falling_TE.gather(0, i.expand(1, values_TE.shape[1])).squeeze(0) for i in (low, high))
    found_E = above_E.lerp(below_E, (rank - low).to(above_E.dtype))
    return found_E.where(num_real > 0, 0.0)


def runner_up(ranked_TE: Tensor, top_k: int) -> Tensor:
    """The (k+1)-th largest of each token, [T, 1]: what an expert must beat to be chosen by it."""
    return ranked_TE.topk(top_k + 1, dim=-1).values[:, -1:]


def solve_prices(
    scores_TE: Tensor, price_E: Tensor, top_k: int, rounds: int, real_T: Tensor | None
) -> tuple[Tensor, Tensor]:
    """BIP: (scores to select by, prices). Scores below zero are first shifted up, a constant for each token, because
    the program prices nonnegative ones."""
    scores_TE = scores_TE - scores_TE.amin(dim=-1, keepdim=True).clamp(max=0.0)
    share = top_k / scores_TE.shape[-1]
    for _ in range(rounds):
        worth_T1 = runner_up(scores_TE - price_E, top_k).clamp(min=0.0)
        price_E = upper_quantile(scores_TE - worth_T1, share, real_T).clamp(min=0.0)
    return scores_TE - price_E, price_E


def sinkhorn(logits_TE: Tensor, iterations: int, tolerance: float, real_T: Tensor | None) -> Tensor:
    """What to select by, [T, E]: z + ln d1, the token's own factor d0 left out because it ranks nothing.

    Iterates at most `iterations` times and stands still once converged, without asking the host whether it has.
    """
    logits_TE = logits_TE - logits_TE.amax(dim=-1, keepdim=True)  # d0 takes up any constant of a token
    affinity_TE = logits_TE.exp()
    if real_T is not None:
        affinity_TE = affinity_TE * real_T[:, None]
    num_real = real_T.sum().clamp(min=1) if real_T is not None else len(logits_TE)
    num_experts = logits_TE.shape[-1]
    scale_E = torch.ones_like(logits_TE[0])
    moving = torch.ones((), dtype=torch.bool, device=logits_TE.device)
    for _ in range(iterations):
        scale_T = 1.0 / (num_real * ((affinity_TE @ scale_E) + FLOOR))
        next_E = 1.0 / (num_experts * ((scale_T @ affinity_TE) + FLOOR))
        change = (next_E - scale_E).abs().mean()
        scale_E = next_E.where(moving, scale_E)
        moving = moving & (change > tolerance)
    return logits_TE + scale_E.log()
