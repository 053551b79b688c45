"""st-moe-pytorch's MoE layer as a system: in the place of each of our MoE layers, everything around it ours.

Another function: GEGLU experts with biases, a capacity per sequence (factor 1.25), a second expert that is dropped at
random when it weighs little. So it starts from weights of its own and its logits are compared with nobody's. Its load
balancing loss is in; its router z-loss is computed by the layer whether one wants it or not, and weighs nothing here.
st-moe-pytorch is imported with this file, which is imported only in the process that needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from st_moe_pytorch import MoE
from torch import Tensor, nn

from chronomoe.benchmark.learner import Learner, Losses, clipping, fused_adamw, mean_cross_entropy
from chronomoe.benchmark.systems import System
from chronomoe.config import TrainConfig
from chronomoe.model.lm import LanguageModel


class InsteadOfOurs(nn.Module):
    """Takes what our MoE layer takes and returns no state, so nothing of ours senses or steers it."""

    def __init__(self, config: TrainConfig, seq_len: int) -> None:
        super().__init__()
        model = config.model
        mult = 1.5 * (model.hidden_dim + 0.5) / model.dim  # its experts are int(2/3 mult dim) wide: exactly hidden_dim
        self.moe = MoE(
            dim=model.dim, num_experts=model.num_experts, expert_hidden_mult=mult, gating_top_n=config.router.top_k
        )
        self.seq_len = seq_len
        self.balance_loss = torch.zeros(())

    def forward(self, x_TD: Tensor, *_: Any) -> tuple[Tensor, None]:
        found = self.moe(x_TD.view(-1, self.seq_len, x_TD.shape[-1]))
        self.balance_loss = found.balance_loss
        return found.outputs.flatten(0, 1), None


def build(system: System, config: TrainConfig, batch_BS: Tensor, weights: dict[str, Tensor]) -> Learner:
    model = LanguageModel(config.model, config.router)
    layers = [InsteadOfOurs(config, batch_BS.shape[1] - 1) for _ in model.blocks]
    for block, layer in zip(model.blocks, layers, strict=True):
        block.ffn = layer
    model.load_state_dict({name: tensor for name, tensor in weights.items() if ".ffn." not in name}, strict=False)
    model.to(batch_BS.device)
    weight = config.router.load_balancing_weight

    def losses(ids_BS: Tensor, targets_BS: Tensor) -> Losses:
        loss = mean_cross_entropy(model(ids_BS).logits_BSV, targets_BS)
        return Losses(loss, loss + weight * torch.stack([layer.balance_loss for layer in layers]).mean())

    return Learner(
        model,
        losses,
        lambda ids_BS: model(ids_BS).logits_BSV,
        fused_adamw(model, config),
        clipping(model),
        note="another function: GEGLU with biases, capacity 1.25, second expert dropped at random; own weights",
    )
