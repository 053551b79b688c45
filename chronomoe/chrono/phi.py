"""Phase coherence phi: does an expert's output point where the rest of the mixture points? Forms, nulls, and the probe.

    leave-one-out  phi_e = mean over t with e in S_t of cos(y_e(t), o_e(t)),  o_e(t) = m(t) - w_te y_e(t)
    excess         phi_e minus the same mean with o_e of another token of e
    cross-token    phi_e = cos(sum_t y_e(t), sum_t o_e(t))
    documented     phi_e = cos(sum_t y_e(t), sum_t m(t)), the sum of m over all tokens
with y_e(t) the unweighted output and m(t) = sum_e w_te y_e(t) the mixture, without shared experts. The first three read
0 for independent experts, excess also where all outputs share a direction; the documented form (ChronoMoE v3) reads
the expert's share of the gate. What each predicts is measured in docs/coherence.md.

The probe reads a few tokens of a forward into the sensor's integers; `decode` turns the sums of an optimizer step into
readings. Readings are NaN where a form is undefined.

Axes: S sampled tokens, T tokens, D model dim, E experts, K experts per token, N = S*K assignments, L MoE layers,
C columns of a probe.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.model.products import full_precision
from chronomoe.model.router import count_by_expert
from chronomoe.model.sensor import UNIT, LayerState, Probe, to_fixed_point

MAX_SAMPLED_TOKENS = 256
"""Tokens of one layer and forward that a probe looks at."""

COUNTS = 5
"""Columns before the vectors: assignments sampled, leave-one-out sum and count, excess sum and count."""


class PhiReading(NamedTuple):
    """One optimizer step's coherence per layer and expert; cosines are fp32 in [-1, 1] (excess in [-2, 2])."""

    loo_LE: Tensor
    """Null 0, sd 1/sqrt(D) per assignment. Undefined (NaN) with one expert per token: read `cross_token_LE`."""
    excess_LE: Tensor
    """Null 0, also under a common direction. NaN if no forward sampled two tokens of the expert."""
    cross_token_LE: Tensor
    """Null 0. With one expert per token it compares an expert's outputs with the mixture of the others' tokens."""
    documented_LE: Tensor
    """Null `documented_null`, not 0."""
    tokens_LE: Tensor
    """int64 sampled assignments that reached the expert."""
    excluded_LE: Tensor
    """int64 of those without a leave-one-out reading: all partners dropped, or one side is the zero vector."""


def cosine(a_D: Tensor, b_D: Tensor) -> Tensor:
    """Cosine over the last axis; NaN (0/0) if either side is the zero vector."""
    norms = torch.linalg.vector_norm(a_D, dim=-1) * torch.linalg.vector_norm(b_D, dim=-1)
    return (a_D * b_D).sum(dim=-1) / norms


def rest_of_mixture(y_SKD: Tensor, weights_SK: Tensor) -> Tensor:
    """o = m - w y for each assignment, [S, K, D], summed from the partners: subtracting from m would leave rounding
    noise where it must be 0, and half of bf16's digits elsewhere."""
    others_KK = 1.0 - torch.eye(weights_SK.shape[1], dtype=y_SKD.dtype, device=y_SKD.device)
    return (weights_SK[:, None, :] * others_KK) @ y_SKD


def leave_one_out(y_SKD: Tensor, weights_SK: Tensor, centre_D: Tensor | None = None) -> Tensor:
    """cos(y_e, m - w y_e) of each assignment, [S, K]. Rows of `y_SKD` that were dropped are 0.

    NaN for dropped assignments, for those whose partners were all dropped, and so for K = 1. `centre_D`, the layer's
    mean mixture, is subtracted from both sides; the null is then `layer_mean_removed_null`. (Never the mean of the
    token's own experts: with K = 2 the cosine would be -1 by algebra.)
    """
    rest_SKD = rest_of_mixture(y_SKD, weights_SK)
    if centre_D is None:
        return cosine(y_SKD, rest_SKD)
    defined_SK = cosine(y_SKD, rest_SKD).isfinite()
    return cosine(y_SKD - centre_D, rest_SKD - centre_D).where(defined_SK, float("nan"))


def pair_within_expert(expert_ids_N: Tensor, usable_N: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """For each usable assignment another one of the same expert: (its position [N], whether there is one [N]).

    The expert's assignments are rolled by half their number: deterministic, and as far away in the text as can be.
    """
    group_N = expert_ids_N.where(usable_N, num_experts)
    order_N = group_N.argsort(stable=True)
    size_G = count_by_expert(group_N, torch.ones_like(group_N), num_experts + 1)
    sorted_N = group_N[order_N]
    size_N, start_N = size_G[sorted_N], (size_G.cumsum(0) - size_G)[sorted_N]
    rank_N = torch.arange(len(order_N), device=order_N.device) - start_N
    partner_N = order_N[start_N + (rank_N + size_N // 2) % size_N]
    return torch.empty_like(order_N).scatter_(0, order_N, partner_N), usable_N & (size_G[group_N] > 1)


def excess(y_ND: Tensor, rest_ND: Tensor, expert_ids_N: Tensor, loo_N: Tensor, num_experts: int) -> Tensor:
    """Leave-one-out minus the cosine with another token's rest, [N]; NaN where either is undefined."""
    partner_N, paired_N = pair_within_expert(expert_ids_N, loo_N.isfinite(), num_experts)
    return (loo_N - cosine(y_ND, rest_ND[partner_N])).where(paired_N, float("nan"))


def documented(output_LED: Tensor, weighted_LED: Tensor) -> Tensor:
    """cos of an expert's summed outputs with the summed mixture, [L, E], from sums of y_e and of w_te y_e."""
    return cosine(output_LED, weighted_LED.sum(dim=-2, keepdim=True))


def cross_token(output_LED: Tensor, weighted_LED: Tensor) -> Tensor:
    """cos of an expert's summed outputs with the summed mixture of all others, [L, E]; NaN if it was the only one.

    With K = 1 the others' mixture is the mixture of the tokens that were not routed to the expert.
    """
    return cosine(output_LED, weighted_LED.sum(dim=-2, keepdim=True) - weighted_LED)


def layer_documented(phi_LE: Tensor, tokens_per_expert_LE: Tensor) -> Tensor:
    """The documented layer value Psi = sum_e (n_e / sum n) phi_e, [L]; experts without a reading are skipped."""
    count_LE = tokens_per_expert_LE.to(phi_LE.dtype).where(phi_LE.isfinite(), 0.0)
    return (phi_LE.nan_to_num() * count_LE).sum(dim=-1) / count_LE.sum(dim=-1)


def documented_null(gate_mass_LE: Tensor) -> Tensor:
    """What the documented form reads for experts with orthogonal, equally long mean outputs: a_e / |a|_2.

    1/sqrt(E) when gate mass is balanced: the form reads concentration of the gate, not agreement.
    """
    return gate_mass_LE / torch.linalg.vector_norm(gate_mass_LE, dim=-1, keepdim=True)


def layer_mean_removed_null(num_experts: int, constant_fraction: float) -> float:
    """About what `leave_one_out` reads with the layer's mean removed, for independent experts, K = 2, equal weights and
    balanced load: -r / sqrt(1 - r), r = constant_fraction / E (a ratio of means in place of the mean of ratios).

    `constant_fraction` in [0, 1] is the part of an output's mean square that is the same for all tokens: about 0 for
    a centred input; 1 for experts that are constants, where -1/sqrt(E (E - 1)) is exact. Where routing follows the same
    shared mean, so that load is imbalanced, readings are far lower: -0.3 at E = 8 (docs/coherence.md).
    """
    part = constant_fraction / num_experts
    return -part / (1.0 - part) ** 0.5


def sample_tokens(num_tokens: int, real_T: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """At most MAX_SAMPLED_TOKENS real tokens, evenly spaced: (token numbers int64 [S], False where S is too many [S]).

    S depends on `num_tokens` alone, so that no host has to know how many are real.
    """
    if real_T is None:
        real_T = torch.ones(num_tokens, dtype=torch.bool, device=device)
    place_S = torch.arange(min(num_tokens, MAX_SAMPLED_TOKENS), device=device)
    seen_T = real_T.cumsum(0)
    rank_S = (place_S * (seen_T[-1:].clamp(min=len(place_S)))) // len(place_S)
    token_S = torch.searchsorted(seen_T, rank_S + 1)
    return token_S.clamp(max=num_tokens - 1), rank_S < seen_T[-1:]


@torch.no_grad()
def read_phi(state: LayerState) -> Tensor:
    """One layer's part in phi in one forward, int64 [E, C]: the COUNTS columns, then the sums of y_e and of w_te y_e.

    An output that is not finite counts as dropped. Nothing here waits for a device.
    """
    routing = state.routing
    num_tokens, num_experts = routing.logits_TE.shape
    token_S, real_S = sample_tokens(num_tokens, state.real_T, routing.logits_TE.device)
    ids_N = routing.topk_expert_ids_TK[token_S].flatten()
    with full_precision(ids_N.device.type):
        y_SKD, weights_SK = state.outputs_of(token_S).float(), routing.topk_weights_TK[token_S].float()
        kept_SK = real_S[:, None] & y_SKD.sum(dim=-1).isfinite()
        if routing.kept_TK is not None:
            kept_SK = kept_SK & routing.kept_TK[token_S]
        y_SKD = y_SKD.where(kept_SK[..., None], 0.0)
        y_ND, rest_ND = y_SKD.flatten(0, 1), rest_of_mixture(y_SKD, weights_SK).flatten(0, 1)
        loo_N = cosine(y_ND, rest_ND)
        excess_N = excess(y_ND, rest_ND, ids_N, loo_N, num_experts)
        amounts = [kept_SK.flatten().long()]
        for value_N in (loo_N, excess_N):
            amounts += [to_fixed_point(value_N.nan_to_num()), value_N.isfinite().long()]
        counts_EC = torch.stack([count_by_expert(ids_N, amount_N, num_experts) for amount_N in amounts], dim=-1)
        # Whole units: scaling by a power of two is exact, and fp64 holds integers below 2^53 exactly, also their sums.
        units_NC = torch.cat((y_ND, weights_SK.flatten()[:, None] * y_ND), dim=-1).mul_(UNIT).round_().double()
        of_expert_EN = (ids_N == torch.arange(num_experts, device=ids_N.device)[:, None]).double()
        return torch.cat((counts_EC, (of_expert_EN @ units_NC).long()), dim=-1)


def phi_probe(dim: int) -> Probe:
    """The probe for layers of width `dim`; `decode` reads its channels of the sensor."""
    return Probe("phi", COUNTS + 2 * dim, read_phi)


def decode(sums_LEC: Tensor) -> PhiReading:
    """The readings that sums of the probe stand for, over all micro-batches and ranks of a step."""
    tokens_LE, loo_LE, loo_count_LE, excess_LE, excess_count_LE = sums_LEC[..., :COUNTS].unbind(dim=-1)
    output_LED, weighted_LED = sums_LEC[..., COUNTS:].double().chunk(2, dim=-1)
    return PhiReading(
        loo_LE=(loo_LE.double() / UNIT / loo_count_LE).float(),
        excess_LE=(excess_LE.double() / UNIT / excess_count_LE).float(),
        cross_token_LE=cross_token(output_LED, weighted_LED).float(),
        documented_LE=documented(output_LED, weighted_LED).float(),
        tokens_LE=tokens_LE,
        excluded_LE=tokens_LE - loo_count_LE,
    )
