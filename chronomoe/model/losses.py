"""Losses on the routing, added to the language model's own with their weights.

    load balancing (Switch, arXiv 2101.03961; GShard 2006.16668), per layer, then the mean over layers:
        E sum_e f_e P_e,   f_e = n_e/(k T) without gradient,   P_e = mean_t p_te
    router z-loss (ST-MoE, arXiv 2202.08906):  mean_t (logsumexp_e z_te)^2
p is the gate's probability, normalised to 1 per token (for sigmoid gates too). A balanced layer reads 1, which is not
the least it can read. Over which tokens f is taken is the loss's scope: with f from a whole step's counts ("global
batch", arXiv 2501.11873) and P from each micro-batch the step's gradient is exact, because the loss is linear in P.
Padding counts for nothing in either loss.

Axes: T tokens, E experts, L MoE layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chronomoe.model.router import RouterOutput, count_assignments


def gate_probabilities(logits_TE: Tensor, gate: str) -> Tensor:
    """The gate's score as a distribution over experts, fp32 [T, E]."""
    if gate != "sigmoid":
        return logits_TE.softmax(dim=-1)
    return torch.nn.functional.logsigmoid(logits_TE).softmax(dim=-1)  # sigmoids over their sum, which may vanish


def masked_mean(values: Tensor, real_T: Tensor | None) -> Tensor:
    """Mean over real tokens (axis 0); 0 if there are none."""
    if real_T is None:
        return values.mean(dim=0)
    weight_T = real_T.to(values.dtype)
    return torch.tensordot(weight_T, values, dims=1) / weight_T.sum().clamp(min=1)


def load_balancing_loss(
    routings: list[RouterOutput], gate: str, real_T: Tensor | None = None, counts_LE: Tensor | None = None
) -> Tensor:
    """A scalar, 1 when balanced. `counts_LE`: the counts to take f from; None takes those of these very tokens."""
    losses = []
    for layer, routing in enumerate(routings):
        ids_TK, num_experts = routing.topk_expert_ids_TK, routing.logits_TE.shape[-1]
        counts_E = count_assignments(ids_TK, num_experts, real_T) if counts_LE is None else counts_LE[layer]
        share_E = counts_E / counts_E.sum().clamp(min=1)
        mean_E = masked_mean(gate_probabilities(routing.logits_TE, gate), real_T)
        losses.append(num_experts * (share_E.to(mean_E.dtype) * mean_E).sum())
    return torch.stack(losses).mean()


def router_z_loss(routings: list[RouterOutput], real_T: Tensor | None = None) -> Tensor:
    """A scalar on the clean logits, (ln E)^2 when they are all zero; mean over layers. It keeps logits small."""
    return torch.stack([masked_mean(r.logits_TE.logsumexp(dim=-1).square(), real_T) for r in routings]).mean()
