"""How much of a token id's traffic its favourite expert gets, beside what chance alone would give it.

    specialisation(e, x) = N_xe / N_x, of each token's strongest expert  (OLMoE, arXiv 2409.02060)
The maximum over experts of a few draws is far above 1/E by itself: its chance level is the expected maximum of a
multinomial with the experts' overall shares. An untrained router is above that too, layer 0 being nearly a function of
the token id.

Axes: T tokens, V token ids, E experts, B simulated tables; leading axes, such as layers, are kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SIMULATIONS = 64
"""Tables drawn for the chance level; their mean is over every id as well, so that few are enough."""


class VocabularySpecialisation(NamedTuple):
    """Means over the token ids seen often enough, fp64; NaN when there are none."""

    value: Tensor
    """max_e N_xe/N_x, in [1/E, 1]."""
    chance: Tensor
    """What a router that ignores the token reads with the same load and the same N_x."""
    corrected: Tensor
    """(value - chance)/(1 - chance): 0 by chance, 1 when every id has one expert; NaN if one expert gets all."""
    token_ids: int
    """Ids the means are over."""


def count_vocabulary(
    strongest_expert_T: Tensor, token_ids_T: Tensor, vocab_size: int, num_experts: int, real_T: Tensor | None = None
) -> Tensor:
    """N_xe: how often each token id went to each expert first, int64 [..., V, E]; batches and ranks add up."""
    amount_T = torch.ones_like(token_ids_T) if real_T is None else real_T.long()
    cell_T = token_ids_T * num_experts + strongest_expert_T
    table = cell_T.new_zeros(*cell_T.shape[:-1], vocab_size * num_experts)
    return table.scatter_add_(-1, cell_T, amount_T.expand_as(cell_T)).unflatten(-1, (vocab_size, num_experts))


def vocabulary_specialisation(
    table_VE: Tensor, *, seen_at_least: int = 8, generator: torch.Generator
) -> VocabularySpecialisation:
    """The mean specialisation of the ids seen at least so often, and its chance level. Layers must share their ids."""
    table_VE = table_VE.cpu()
    count_V = table_VE.sum(dim=-1).view(-1, table_VE.shape[-2])[0]  # every layer sees the same tokens
    often_V = (count_V >= seen_at_least) & (count_V > 0)
    table_XE, count_X = table_VE[..., often_V, :].double(), count_V[often_V].double()
    value = (table_XE.amax(dim=-1) / count_X).mean(dim=-1)
    total_E = table_VE.sum(dim=-2).double()
    share_E = total_E / total_E.sum(dim=-1, keepdim=True)
    chance = expected_maximum(count_X, share_E, generator)
    room = 1.0 - chance
    return VocabularySpecialisation(
        value, chance, ((value - chance) / room).where(room > 1e-12, math.nan), int(often_V.sum())
    )


def expected_maximum(draws_X: Tensor, share_E: Tensor, generator: torch.Generator) -> Tensor:
    """Mean over X of E[max_e n_e]/n for n ~ multinomial(draws, shares), by simulation; fp64 [...]."""
    left = draws_X.expand(*share_E.shape[:-1], SIMULATIONS, len(draws_X)).contiguous()
    most = torch.zeros_like(left)
    # A multinomial is a chain of binomials: of what is left, each expert gets its share of what shares are left.
    remaining_E = share_E.flip(-1).cumsum(dim=-1).flip(-1)
    chance_E = (share_E / remaining_E).nan_to_num(0.0).clamp(max=1.0)
    for expert in range(share_E.shape[-1]):
        drawn = torch.binomial(left, chance_E[..., expert, None, None].expand_as(left), generator=generator)
        most, left = torch.maximum(most, drawn), left - drawn
    return (most / draws_X).mean(dim=(-2, -1))
