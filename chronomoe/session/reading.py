"""What one forward pass shows of every token it reads, and nothing made up: the ground of all signals of a session.

Router logits are clean (before bias, temperature and top-k); the distribution over experts is their gate's:

    softmax, topk_softmax:  p = softmax(z) over all routed experts      sigmoid:  p = sigmoid(z) / sum sigmoid(z)
The effective distribution is what the field makes of it, for ranking: softmax(s + bias) where the gate ranks logits,
max(0, s + bias) over its sum where it ranks scores; a neutral field leaves it the clean one.

A model is anything that offers what `Readable` lists: a `LanguageModel`, or a pretrained one behind an adapter.

Axes: S tokens, V vocabulary, D model dim, L MoE layers, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chronomoe.model.losses import gate_probabilities
from chronomoe.settings import InputError

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]


class Readable(Protocol):
    """What a session needs of a model."""

    settings: Any
    """With `vocab_size`, `dim`, `num_experts`, `num_moe_layers` and `longest_text`."""
    router_settings: Any
    """With `kind`, `gate` and `top_k`."""
    expert_bias_LE: Tensor
    log_temperature_LE: Tensor

    def __call__(self, input_ids_BS: Tensor, *, state: Any) -> Any:
        """Extends the state in place; `.hidden_BSD` is what the head reads, `.logits_BSV`, `.routings` one a layer."""

    def new_state(self, batch: int, capacity: int = 0) -> Any:
        """With `clone`, `to_dict` and `load_dict`."""

    def state_dict(self) -> dict[str, Any]: ...


class Reading(NamedTuple):
    """On the CPU, whatever the model runs on."""

    logits_SV: Tensor
    """fp32, of the token after each."""
    hidden_SD: Floats
    """fp32, what the head reads."""
    router_logits_SLE: Floats
    """fp64 of the clean fp32 logits."""
    probabilities_SLE: Floats
    """fp64, clean; rows sum to 1."""
    effective_SLE: Floats
    """fp64, under the field; rows sum to 1."""
    expert_ids_SLK: Integers
    """The experts that were visited."""


def check_readable(model: Readable) -> None:
    """Raises InputError for a model whose routing has no distribution a token could be sure or unsure of."""
    settings, router = model.settings, model.router_settings
    if settings.num_moe_layers == 0:
        raise InputError("model.dense=true routes nothing: a session measures routers, use a model with experts")
    if router.kind == "expert_choice":
        raise InputError(
            "router.kind=expert_choice: experts choose tokens, which has no entropy of a token's own; "
            "use a model trained with router=mixtral or router=switch"
        )
    if router.top_k >= settings.num_experts:
        raise InputError(
            f"router.top_k={router.top_k} sends every token to all {settings.num_experts} experts, so "
            "that no routing is left to measure; use a model with fewer experts per token"
        )


@torch.inference_mode()
def read(model: Readable, ids_S: list[int], state: Any) -> Reading:
    """Read S tokens in one forward, which extends `state`."""
    device = model.expert_bias_LE.device
    output = model(torch.tensor([ids_S], device=device), state=state)
    gate = model.router_settings.gate
    logits_SLE = torch.stack([routing.logits_TE for routing in output.routings], dim=1).double().cpu()
    scores_SLE = torch.stack([routing.scores_TE for routing in output.routings], dim=1).double().cpu()
    ids_SLK = torch.stack([routing.topk_expert_ids_TK for routing in output.routings], dim=1).cpu()
    probabilities_SLE = gate_probabilities(logits_SLE, gate)
    return Reading(
        logits_SV=output.logits_BSV[0].float().cpu(),
        hidden_SD=output.hidden_BSD[0].float().cpu().numpy(),
        router_logits_SLE=logits_SLE.numpy(),
        probabilities_SLE=probabilities_SLE.numpy(),
        effective_SLE=steered(scores_SLE, model.expert_bias_LE.double().cpu(), gate).numpy(),
        expert_ids_SLK=ids_SLK.numpy(),
    )


def steered(scores_SLE: Tensor, expert_bias_LE: Tensor, gate: str) -> Tensor:
    """The distribution that the field ranks experts by: from scores under the temperature, and the bias, which is in
    their units."""
    ranked_SLE = scores_SLE + expert_bias_LE
    if gate == "topk_softmax":
        return ranked_SLE.softmax(dim=-1)
    ranked_SLE = ranked_SLE.clamp(min=torch.finfo(torch.float64).tiny)
    return ranked_SLE / ranked_SLE.sum(dim=-1, keepdim=True)
