"""Expert choice: every expert takes its best tokens, so loads are equal and some tokens get no expert.

    s_te = softmax over experts of z_te ;  w_te = s_te for the tokens taken, which need not sum to 1
    plain:   expert e takes the c tokens of the batch with the largest s_te,  c = ceil(T capacity_factor / E)
    causal:  expert e takes every token with s_te + b_e > 0,  b_e = -threshold_e
    threshold_e <- keep threshold_e + (1 - keep) quantile_e,  keep = 2^(-1/HALF_LIFE_STEPS)
Source: arXiv 2202.09368. The plain rule compares tokens with later ones: a language model trained so has seen its
future, and a decoder has no batch to compare with. The causal rule asks of a token only its own score; the threshold
follows the (1 - c/T) quantile of past optimizer steps and stands still in evaluation and decoding, where the same rule
holds token by token. Loads are then equal as far as a batch is like those before it.

A controller's bias and temperature have no hand here. The columns of the output are all E experts of a token, best
first; `kept_TK` marks those that took it.

Axes: T tokens, D model dim, E experts, K = E columns, C tokens per expert, L MoE layers.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from chronomoe.model.assignment import upper_quantile
from chronomoe.model.capacity import capacity_of, room_of
from chronomoe.model.products import full_precision
from chronomoe.model.router import RouterOutput, wide
from chronomoe.model.sensor import UNIT, LayerState, Probe, to_fixed_point

HALF_LIFE_STEPS = 1.0
"""Optimizer steps after which a batch's quantile counts half. Gates move fast in the first hundred steps: of 1, 2, 4
and 8, the shortest kept loads nearest their share then and no worse later."""


def best_tokens(scores_TE: Tensor, capacity_factor: float, real_T: Tensor | None) -> Tensor:
    """The plain rule: which tokens each expert takes, bool [T, E]; padding is taken by none."""
    num_tokens, num_experts = scores_TE.shape
    if real_T is not None:
        scores_TE = scores_TE.masked_fill(~real_T[:, None], -1.0)
    slots = min(num_tokens, capacity_of(num_tokens, num_experts, capacity_factor))
    token_CE = scores_TE.topk(slots, dim=0).indices
    wanted_C1 = torch.arange(slots, device=scores_TE.device)[:, None] < room_of(
        num_tokens, 1, num_experts, capacity_factor, real_T
    )
    taken_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter_(0, token_CE, wanted_C1.expand_as(token_CE))
    return taken_TE if real_T is None else taken_TE & real_T[:, None]


class ExpertChoiceRouter(nn.Module):
    """`causal` chooses between the two rules; it must be given the negative threshold as its bias."""

    def __init__(self, dim: int, num_experts: int, capacity_factor: float, causal: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.capacity_factor, self.causal = capacity_factor, causal

    def forward(
        self, x_TD: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor | None, real_T: Tensor | None = None
    ) -> RouterOutput:
        with full_precision(x_TD.device.type):
            logits_TE = linear(x_TD.to(wide(x_TD)), self.gate.weight.to(wide(x_TD)))
            scores_TE = logits_TE.softmax(dim=-1)
        num_tokens, num_experts = scores_TE.shape
        capacity = None
        if self.causal:
            taken_TE = scores_TE + expert_bias_E > 0
            taken_TE = taken_TE if real_T is None else taken_TE & real_T[:, None]
        else:
            taken_TE = best_tokens(scores_TE.detach(), self.capacity_factor, real_T)
            capacity = min(num_tokens, capacity_of(num_tokens, num_experts, self.capacity_factor))
        ids_TK = scores_TE.detach().argsort(dim=-1, descending=True, stable=True)
        kept_TK = taken_TE.gather(1, ids_TK)
        return RouterOutput(
            ids_TK,
            scores_TE.gather(1, ids_TK).masked_fill(~kept_TK, 0.0),
            logits_TE,
            scores_TE.detach(),
            taken_TE.sum(dim=0),
            kept_TK,
            capacity,
            assigned_TK=kept_TK,
        )


def initial_threshold(capacity_factor: float, num_experts: int, logit_std: float) -> float:
    """The quantile of an untrained gate, whose logits are independent normals of this standard deviation.

    s = exp(z)/(E mean exp(z)), so it is exp(std x - std^2/2)/E with x the normal's (1 - capacity_factor/E) point.
    """
    share = capacity_factor / num_experts
    if share >= 1:
        return 0.0
    return math.exp(logit_std * NormalDist().inv_cdf(1 - share) - logit_std**2 / 2) / num_experts


def threshold_probe(capacity_factor: float) -> Probe:
    """What thresholds follow: [E, 2], a batch's quantile times its real tokens, in units of 1/UNIT, and the tokens."""

    def read(state: LayerState) -> Tensor:
        scores_TE = state.routing.scores_TE
        quantile_E = upper_quantile(scores_TE, capacity_factor / scores_TE.shape[1], state.real_T)
        tokens = len(scores_TE) if state.real_T is None else state.real_T.sum()
        fixed_E = to_fixed_point(quantile_E)
        return torch.stack((fixed_E * tokens, torch.ones_like(fixed_E) * tokens), dim=-1)

    return Probe("threshold", 2, read)


def read_experts_per_token(state: LayerState) -> Tensor:
    """How many tokens were taken by n experts, row n of [E, 1]; the last row also counts those all took."""
    kept_TK = state.routing.kept_TK
    assert kept_TK is not None
    experts_T = kept_TK.sum(dim=-1).clamp(max=kept_TK.shape[1] - 1)
    real_T = torch.ones_like(experts_T) if state.real_T is None else state.real_T.long()
    return torch.zeros_like(state.routing.tokens_per_expert_E).scatter_add_(0, experts_T, real_T)[:, None]


EXPERTS_PER_TOKEN = Probe("experts_per_token", 1, read_experts_per_token)


def follow_threshold(threshold_LE: Tensor, reading_LEC: Tensor) -> Tensor:
    """Thresholds after one optimizer step whose probes summed up to this; where nothing was read they stay."""
    total_LE, tokens_LE = reading_LEC.unbind(dim=-1)
    quantile_LE = (total_LE.double() / (UNIT * tokens_LE.clamp(min=1))).float()
    moved_LE = quantile_LE.lerp(threshold_LE, 0.5 ** (1.0 / HALF_LIFE_STEPS))
    return moved_LE.where(tokens_LE > 0, threshold_LE)
