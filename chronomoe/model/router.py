"""Token-choice routing: which experts each token goes to, and with what weight.

    z = x W_gate (clean logits, fp32) ;  z' = z + (z - mean_e z) (exp(-log_temperature) - 1) + bias
    S = top-k of z' ;  w = softmax over S of z' (actuation "logits") or of z (actuation "selection")
The field (bias, log-temperature) is the controller's hand on the router. Written this way a neutral field returns z bit
for bit, and adding a constant to a token's logits moves nothing; up to that constant z' is (z - mean z)/temperature +
bias. Source of the plain router: Mixtral, arXiv 2401.04088.

Axes: T tokens, D model dim, E experts, K experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class RouterOutput(NamedTuple):
    """One layer's routing decision. Nothing downstream recomputes any of it."""

    topk_expert_ids_TK: Tensor
    """int64, distinct per token, strongest first."""
    topk_weights_TK: Tensor
    """fp32 mixing weights, summing to 1 over K."""
    logits_TE: Tensor
    """fp32 clean logits: before bias and temperature."""
    tokens_per_expert_E: Tensor
    """int64 assignments to each expert, padding included; they sum to T*K."""


def count_by_expert(expert_ids_N: Tensor, amounts_N: Tensor, num_experts: int) -> Tensor:
    """Sum of integer amounts per expert, int64 [E], without asking the host for sizes (bincount would)."""
    return torch.zeros(num_experts, dtype=torch.int64, device=expert_ids_N.device).scatter_add_(
        0, expert_ids_N, amounts_N
    )


def apply_field(logits_TE: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor) -> Tensor:
    """The steered logits z' of the module docstring."""
    centred_TE = logits_TE - logits_TE.mean(dim=-1, keepdim=True)
    return logits_TE + centred_TE * torch.expm1(-log_temperature_E) + expert_bias_E


class TopKRouter(nn.Module):
    """Mixtral's router. `actuation` says whether the field shapes selection and weights ("logits") or selection
    only."""

    def __init__(self, dim: int, num_experts: int, top_k: int, actuation: str) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.top_k = top_k
        self.steer_weights = actuation == "logits"

    def forward(self, x_TD: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor) -> RouterOutput:
        # The gate runs in fp32 whatever the precision around it: its logits decide discontinuously.
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = linear(x_TD.float(), self.gate.weight.float())
            steered_TE = apply_field(logits_TE, expert_bias_E, log_temperature_E)
            ids_TK = steered_TE.detach().topk(self.top_k, dim=-1).indices
            scores_TE = steered_TE if self.steer_weights else logits_TE
            weights_TK = scores_TE.gather(-1, ids_TK).softmax(dim=-1)
            flat_N = ids_TK.flatten()
            tokens_per_expert_E = count_by_expert(flat_N, torch.ones_like(flat_N), logits_TE.shape[-1])
        return RouterOutput(ids_TK, weights_TK, logits_TE, tokens_per_expert_E)
