"""Readings of the scores themselves: for laws that price experts instead of counting tokens, and for who watches them.

    alpha_t = (k+1)-th largest over e of (s_te + b_e) ;  margin_te = s_te - alpha_t
    exact:      q_e = (kT/E + 1)-th largest over t of margin_te, of each micro-batch, then their mean
    histogram:  how many margins fall in each of BINS bins; summed over micro-batches and ranks before the quantile
A token wants expert e if its margin exceeds the expert's price q_e = -b_e; at the price found so, just kT/E tokens do.

Axes: T tokens, L MoE layers, E experts, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chronomoe.model.assignment import runner_up, upper_quantile
from chronomoe.model.router import count_by_expert, select_largest
from chronomoe.model.sensor import UNIT, LayerState, Probe, to_fixed_point

BINS = 1000


def margins(state: LayerState, top_k: int) -> Tensor:
    scores_TE = state.routing.scores_TE
    return scores_TE - runner_up(scores_TE + state.expert_bias_E, top_k)


def mean_reading(price_E: Tensor) -> Tensor:
    """A real number per expert as something that can be summed and averaged: [E, 2], the price and a one."""
    fixed_E = to_fixed_point(price_E)
    return torch.stack((fixed_E, torch.ones_like(fixed_E)), dim=-1)


def decode_mean(reading_LEC: Tensor) -> Tensor:
    """Mean of what `mean_reading` summed, fp32 [L, E]; 0 where nothing was read."""
    total_LE, times_LE = reading_LEC.unbind(dim=-1)
    return (total_LE.double() / (UNIT * times_LE.clamp(min=1))).float()


def exact_price(top_k: int) -> Probe:
    def read(state: LayerState) -> Tensor:
        margins_TE = margins(state, top_k)
        return mean_reading(upper_quantile(margins_TE, top_k / margins_TE.shape[-1], state.real_T))

    return Probe("price", 2, read)


def preference(top_k: int) -> Probe:
    """Tokens that would have chosen each expert had there been no field: [E, 1]."""

    def read(state: LayerState) -> Tensor:
        routing = state.routing
        wanted_TK = select_largest(routing.logits_TE, top_k)
        ones_TK = torch.ones_like(wanted_TK)
        if state.real_T is not None:
            ones_TK = ones_TK * state.real_T[:, None]
        return count_by_expert(wanted_TK.flatten(), ones_TK.flatten(), routing.logits_TE.shape[-1])[:, None]

    return Probe("preference", 1, read)


def solved_price() -> Probe:
    """The price an in-batch solver came to."""

    def read(state: LayerState) -> Tensor:
        assert state.routing.price_E is not None
        return mean_reading(state.routing.price_E)

    return Probe("price", 2, read)


def bin_range(bias_E: Tensor) -> tuple[Tensor, Tensor]:
    """Where -margins can lie when scores lie in [0, 1]: (min b - 1, max b + 1), for each layer if there are several."""
    return bias_E.amin(dim=-1, keepdim=True) - 1.0, bias_E.amax(dim=-1, keepdim=True) + 1.0


def price_histogram(top_k: int) -> Probe:
    """Counts of r = alpha - s in BINS bins between the ends of `bin_range`, and below and above them: [E, BINS + 2]."""

    def read(state: LayerState) -> Tensor:
        regret_TE = -margins(state, top_k)
        low, high = bin_range(state.expert_bias_E)
        place_TE = ((regret_TE - low) / (high - low) * BINS).nan_to_num(-1.0)  # no number is outside as well
        place_TE = place_TE.where(place_TE != BINS, BINS - 1)  # the upper end belongs to the last bin
        bins_TE = place_TE.floor().clamp(-1, BINS).long() + 1
        ones_TE = torch.ones_like(bins_TE)
        if state.real_T is not None:
            ones_TE = ones_TE * state.real_T[:, None]
        return (
            torch.zeros(BINS + 2, bins_TE.shape[-1], dtype=torch.int64, device=bins_TE.device)
            .scatter_add_(0, bins_TE, ones_TE)
            .T
        )

    return Probe("price_histogram", BINS + 2, read)


def histogram_bias(counts_LEC: Tensor, bias_LE: Tensor, share_L1: Tensor) -> Tensor:
    """The r below which `share_L1` of each expert's tokens lie, interpolated inside its bin, [L, E].

    NaN where that r falls outside the bins: scores were not in [0, 1], and clipping would hide it. `bias_LE` is what
    was in force while counting; it stays where nothing was counted.
    """
    low_L1, high_L1 = bin_range(bias_LE)
    below_LEC = counts_LEC.cumsum(dim=-1).double()
    wanted_LE1 = share_L1[..., None] * below_LEC[..., -1:]
    found_LE1 = torch.searchsorted(below_LEC, wanted_LE1).clamp(max=counts_LEC.shape[-1] - 1)
    reached_LE1 = below_LEC.gather(-1, found_LE1)
    inside_LE1 = counts_LEC.gather(-1, found_LE1).double()
    fraction_LE1 = 1.0 - (reached_LE1 - wanted_LE1) / inside_LE1.clamp(min=1.0)
    position_LE = (found_LE1 - 1 + fraction_LE1).squeeze(-1) / BINS
    unseen_LE = below_LEC[..., -1] == 0
    outside_LE = (found_LE1.squeeze(-1) == 0) | (found_LE1.squeeze(-1) == counts_LEC.shape[-1] - 1)
    bias_found_LE = low_L1 + position_LE * (high_L1 - low_L1)
    bias_found_LE = bias_found_LE.masked_fill(outside_LE, float("nan"))
    return bias_LE.where(unseen_LE, bias_found_LE.float())
