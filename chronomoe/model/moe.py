"""The MoE layer: router, dispatch to experts, combine; and the reading its sensor takes.

    y_t = sum over e in S_t of w_te expert_e(x_t)
Assignments are sorted by expert, run through the bank in one grouped call, and summed back by weight. No token is
dropped, none is padded. The layer holds no controller state: the field comes in as arguments, the reading goes out.

Axes: T tokens, D model dim, E experts, K experts per token, N = T*K assignments.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from chronomoe.model.experts import ExpertBank
from chronomoe.model.router import RouterOutput

GATE_MASS_UNIT = 2**20
"""Gate weights are counted in units of 2^-20, as integers: a sum of integers is the same in every order, so a step's
reading does not depend on how its tokens were split into micro-batches or ranks."""


class Dispatch(NamedTuple):
    """Assignments in expert order."""

    order_N: Tensor
    """Position in the flat [T*K] list of the n-th assignment in expert order."""
    tokens_per_expert_E: Tensor
    """int64 group sizes; they sum to N."""


def group_by_expert(topk_expert_ids_TK: Tensor, num_experts: int) -> Dispatch:
    """Stable order by expert, so that within an expert tokens keep their order."""
    flat_N = topk_expert_ids_TK.flatten()
    return Dispatch(flat_N.argsort(stable=True), count_by_expert(flat_N, torch.ones_like(flat_N), num_experts))


def count_by_expert(expert_ids_N: Tensor, amounts_N: Tensor, num_experts: int) -> Tensor:
    """Sum of integer amounts per expert, int64 [E], without asking the host for sizes (bincount would)."""
    return torch.zeros(num_experts, dtype=torch.int64, device=expert_ids_N.device).scatter_add_(
        0, expert_ids_N, amounts_N
    )


@torch.no_grad()
def read_routing(routing: RouterOutput, real_T: Tensor | None, num_experts: int) -> Tensor:
    """The sensor's reading of one forward, int64 [2, E]: assignments, and gate mass in units of 1/GATE_MASS_UNIT.

    Padding (False in `real_T`) counts for nothing.
    """
    ids_TK = routing.topk_expert_ids_TK
    mass_TK = (routing.topk_weights_TK * GATE_MASS_UNIT).round().long()
    ones_TK = torch.ones_like(ids_TK)
    if real_T is not None:
        mass_TK, ones_TK = mass_TK * real_T[:, None], ones_TK * real_T[:, None]
    flat_N = ids_TK.flatten()
    return torch.stack([count_by_expert(flat_N, amounts.flatten(), num_experts) for amounts in (ones_TK, mass_TK)])


class MoELayer(nn.Module):
    def __init__(self, router: nn.Module, experts: ExpertBank, num_experts: int) -> None:
        super().__init__()
        self.router, self.experts, self.num_experts = router, experts, num_experts

    def forward(self, x_TD: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor) -> tuple[Tensor, RouterOutput]:
        """Returns the mixture [T, D] and the decision that made it."""
        routing: RouterOutput = self.router(x_TD, expert_bias_E, log_temperature_E)
        order_N, tokens_per_expert_E = group_by_expert(routing.topk_expert_ids_TK, self.num_experts)
        top_k = routing.topk_expert_ids_TK.shape[1]
        if torch.is_autocast_enabled(x_TD.device.type):
            x_TD = x_TD.to(torch.get_autocast_dtype(x_TD.device.type))
        y_ND = self.experts(x_TD[order_N // top_k], tokens_per_expert_E)
        y_TKD = torch.empty_like(y_ND).index_copy(0, order_N, y_ND).view(*routing.topk_expert_ids_TK.shape, -1)
        weights_T1K = routing.topk_weights_TK[:, None, :].to(y_TKD.dtype)
        return (weights_T1K @ y_TKD).squeeze(1), routing
