"""Weights between our Switch layer and transformers' SwitchTransformersSparseMLP (v5): one MoE layer, not a model.

transformers keeps every expert apart and counts capacity per sequence; ours counts per batch, so one sequence at a time
is compared. A token both drop adds 0 to the residual stream.

Axes: E experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from chronomoe.model.capacity import capacity_of
from chronomoe.model.settings import ModelSettings, RouterSettings

if TYPE_CHECKING:
    from transformers import SwitchTransformersConfig

GATE = ("router.gate.weight", "router.classifier.weight")
EXPERT = {"experts.gate_up_EFD": "wi.weight", "experts.down_EDF": "wo.weight"}


def switch_config(model: ModelSettings, router: RouterSettings, seq_len: int) -> SwitchTransformersConfig:
    """The transformers configuration of the same layer for sequences of `seq_len` tokens; needs ReLU experts."""
    from transformers import SwitchTransformersConfig

    assert router.kind == "switch"
    assert model.activation == "relu"
    capacity = seq_len
    if router.capacity_factor is not None:
        capacity = min(seq_len, capacity_of(seq_len, model.num_experts, router.capacity_factor))
    return SwitchTransformersConfig(
        d_model=model.dim,
        d_ff=model.hidden_dim,
        num_experts=model.num_experts,
        expert_capacity=capacity,
        router_jitter_noise=router.jitter,
        router_bias=False,
        dropout_rate=0.0,
        dense_act_fn="relu",
    )


def to_switch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our layer's weights (or gradients, keyed alike) under transformers' names."""
    renamed = {GATE[1]: state[GATE[0]]}
    for ours, theirs in EXPERT.items():
        renamed |= {f"experts.expert_{expert}.{theirs}": weight for expert, weight in enumerate(state[ours])}
    return renamed


def from_switch(state: dict[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """transformers' weights under our names; the inverse of `to_switch`."""
    renamed = {GATE[0]: state[GATE[1]]}
    for ours, theirs in EXPERT.items():
        renamed[ours] = torch.stack([state[f"experts.expert_{expert}.{theirs}"] for expert in range(num_experts)])
    return renamed
