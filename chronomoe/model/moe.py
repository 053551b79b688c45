"""The MoE layer: router, dispatch to experts, combine; and the reading its sensor takes.

    y_t = sum over e in S_t of w_te expert_e(x_t)
Assignments are sorted by expert, run through the bank in one grouped call, and summed back by weight. No token is
dropped, none is padded. The layer holds no controller state: the field comes in as arguments, the reading goes out.

Axes: T tokens, D model dim, E experts, K experts per token, N = T*K assignments.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chronomoe.model.experts import ExpertBank
from chronomoe.model.router import RouterOutput, count_by_expert

GATE_MASS_UNIT = 2**20
"""Gate weights are counted in units of 2^-20, as integers: a sum of integers is the same in every order, so a step's
reading does not depend on how its tokens were split into micro-batches or ranks."""


def order_by_expert(topk_expert_ids_TK: Tensor) -> Tensor:
    """Positions in the flat [T*K] list of assignments, in expert order, int64 [N]; equal experts keep the tokens'
    order."""
    return topk_expert_ids_TK.flatten().argsort(stable=True)


@torch.no_grad()
def read_routing(routing: RouterOutput, real_T: Tensor | None) -> Tensor:
    """The sensor's reading of one forward, int64 [2, E]: assignments, and gate mass in units of 1/GATE_MASS_UNIT.

    Padding (False in `real_T`) counts for nothing.
    """
    flat_N = routing.topk_expert_ids_TK.flatten()
    mass_TK = (routing.topk_weights_TK * GATE_MASS_UNIT).round().long()
    tokens_per_expert_E = routing.tokens_per_expert_E
    num_experts = len(tokens_per_expert_E)
    if real_T is not None:
        mass_TK = mass_TK * real_T[:, None]
        real_TK = real_T[:, None].expand_as(mass_TK).long()
        tokens_per_expert_E = count_by_expert(flat_N, real_TK.flatten(), num_experts)
    return torch.stack((tokens_per_expert_E, count_by_expert(flat_N, mass_TK.flatten(), num_experts)))


class MoELayer(nn.Module):
    def __init__(self, router: nn.Module, experts: ExpertBank) -> None:
        super().__init__()
        self.router, self.experts = router, experts

    def forward(self, x_TD: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor) -> tuple[Tensor, RouterOutput]:
        """Returns the mixture [T, D] and the decision that made it."""
        routing: RouterOutput = self.router(x_TD, expert_bias_E, log_temperature_E)
        order_N = order_by_expert(routing.topk_expert_ids_TK)
        top_k = routing.topk_expert_ids_TK.shape[1]
        if torch.is_autocast_enabled(x_TD.device.type):
            x_TD = x_TD.to(torch.get_autocast_dtype(x_TD.device.type))
        y_ND = self.experts(x_TD[order_N // top_k], routing.tokens_per_expert_E)
        y_TKD = torch.empty_like(y_ND).index_copy(0, order_N, y_ND).view(*routing.topk_expert_ids_TK.shape, -1)
        weights_T1K = routing.topk_weights_TK[:, None, :].to(y_TKD.dtype)
        return (weights_T1K @ y_TKD).squeeze(1), routing
