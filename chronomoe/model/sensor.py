"""The sensor: what every layer's routing did since somebody last cleared it, as one tensor of integers.

    totals_LEC += reading of each forward in training mode, padding left out
Channels: assignments before dropping, gate mass, dropped assignments, then whatever the attached probes read. A sum of
integers is the same in every order, so a step's reading does not depend on how its tokens were split into
micro-batches or ranks; real numbers are therefore counted in units of 2^-20.

Axes: T tokens, K experts per token, D model dim, L MoE layers, E experts, C channels, S sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.model.router import RouterOutput, count_assignments, count_by_expert

UNIT = 2**20
"""Real numbers in the sensor are whole multiples of 1/UNIT."""
ASSIGNMENTS, GATE_MASS, DROPPED, PLAIN_CHANNELS = 0, 1, 2, 3


class LayerState(NamedTuple):
    """Everything one MoE layer knows of one forward; whoever measures routing measures this."""

    layer: int
    routing: RouterOutput
    expert_bias_E: Tensor
    real_T: Tensor | None
    """bool, False at padding."""
    outputs_of: Callable[[Tensor], Tensor]
    """Token numbers int64 [S] -> the unweighted expert outputs of those tokens [S, K, D]; 0 where dropped."""
    mixture_TD: Tensor
    """sum over K of weight times output, without shared experts and before the residual add."""


class Probe(NamedTuple):
    """A further reading of the sensor."""

    name: str
    channels: int
    read: Callable[[LayerState], Tensor]
    """-> int64 [E, channels], to be summed over forwards and ranks."""


def to_fixed_point(amount: Tensor) -> Tensor:
    return (amount.double() * UNIT).round().long()


@torch.no_grad()
def read_layer(state: LayerState, probes: list[Probe]) -> Tensor:
    """One forward's reading of one layer, int64 [E, C]."""
    routing, real_T = state.routing, state.real_T
    flat_N = routing.topk_expert_ids_TK.flatten()
    num_experts = routing.logits_TE.shape[-1]
    mass_TK = to_fixed_point(routing.topk_weights_TK)
    assigned_E, counted_TK = routing.tokens_per_expert_E, routing.assigned_TK
    if real_T is not None:
        real_TK = real_T[:, None].expand_as(mass_TK)
        counted_TK = real_TK if counted_TK is None else counted_TK & real_TK
        mass_TK = mass_TK * real_TK
        assigned_E = count_assignments(routing.topk_expert_ids_TK, num_experts, real_T, routing.assigned_TK)
    dropped_E = torch.zeros_like(assigned_E)
    if routing.kept_TK is not None:
        lost_TK = ~routing.kept_TK if counted_TK is None else ~routing.kept_TK & counted_TK
        dropped_E = count_by_expert(flat_N, lost_TK.flatten().long(), num_experts)
    plain_EC = torch.stack((assigned_E, count_by_expert(flat_N, mass_TK.flatten(), num_experts), dropped_E), dim=-1)
    return torch.cat([plain_EC, *(probe.read(state) for probe in probes)], dim=-1)
