"""How sure tokens are of their experts, and how much a token tells about them: entropies of the clean logits.

    token_entropy = mean_t H(p_t) / ln E ;  expert_information = H(mean_t p_t) - mean_t H(p_t)  (nats)
p_t is the full distribution over experts, never the k renormalised mixing weights and never the biased scores. A load
that is even because nobody prefers anything and one that is even because everybody prefers something else have the
same load entropy; only the information tells them apart. An untrained router with logits of standard deviation s
(over experts, within a token) reads about 1 - s^2 (1 - 1/E)/(2 ln E) and s^2 (1 - 1/E)/2.

An evaluation comes in batches and perhaps on several ranks: a `Tally` of each is added up, and read once.

Axes: T tokens, E experts, K experts per token, L MoE layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.chrono.metrics.load import load_entropy, max_vio, unused_expert_frac
from chronomoe.model.losses import gate_probabilities
from chronomoe.model.router import count_assignments

Routing = tuple[Tensor, Tensor, Tensor | None] | tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""One layer's (logits_TE, topk_expert_ids_TK, kept_TK), and assigned_TK where some columns are candidates only (expert
choice). An assignment without room is False in kept_TK; None: all were kept, all are assignments."""


class Tally(NamedTuple):
    """What the routing of some tokens adds up to; integers and doubles, so that the order of adding hardly matters."""

    counts_LE: Tensor
    """int64 assignments before any was dropped."""
    dropped_L: Tensor
    """int64 assignments for which their expert had no room."""
    probability_sum_LE: Tensor
    """fp64 sum over tokens of p_t."""
    entropy_sum_L: Tensor
    """fp64 sum over tokens of H(p_t), nats."""
    tokens: Tensor
    """int64 scalar, padding left out."""


def token_probabilities(logits_TE: Tensor, gate: str = "softmax") -> Tensor:
    """p_t, fp64 [T, E], rows summing to 1: the softmax, or for `gate="sigmoid"` the sigmoids over their sum."""
    return gate_probabilities(logits_TE.double(), gate)


def entropy(probabilities: Tensor) -> Tensor:
    """H in nats over the last axis; 0 ln 0 is 0."""
    return torch.special.entr(probabilities).sum(dim=-1)


def token_entropy(probabilities_TE: Tensor) -> Tensor:
    """Mean over tokens of H(p_t)/ln E, in [0, 1]: 1 when no token prefers anything; NaN without tokens."""
    return entropy(probabilities_TE).mean(dim=-1) / math.log(probabilities_TE.shape[-1])


def expert_information(probabilities_TE: Tensor) -> Tensor:
    """Mutual information of token and expert, I = H(mean p) - mean H(p), in [0, ln E] nats; NaN without tokens.

    0 when every token has the same p_t, ln E when each is certain and all experts are chosen equally often.
    """
    return information(probabilities_TE.mean(dim=-2), entropy(probabilities_TE).mean(dim=-1))


def information(mean_probability_LE: Tensor, mean_entropy_L: Tensor) -> Tensor:
    """H(mean p) - mean H(p). Jensen's inequality makes it non-negative and rounding must not undo that."""
    return (entropy(mean_probability_LE) - mean_entropy_L).clamp(min=0.0)


def empty_tally(num_layers: int, num_experts: int, device: torch.device | str = "cpu") -> Tally:
    """The tally of no tokens, to start adding from."""
    zeros_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
    return Tally(zeros_LE, zeros_LE[:, 0].clone(), zeros_LE.double(), zeros_LE[:, 0].double(), zeros_LE.new_zeros(()))


@torch.no_grad()
def tally(routings: Sequence[Routing], real_T: Tensor | None = None, gate: str = "softmax") -> Tally:
    """One batch's tally from every layer's routing; padding (False in `real_T`) counts for nothing."""
    layers = [_tally_layer(*routing, real_T=real_T, gate=gate) for routing in routings]
    counts_LE, dropped_L, probability_sum_LE, entropy_sum_L = map(torch.stack, zip(*layers, strict=True))
    num_tokens = counts_LE.new_tensor(len(routings[0][0])) if real_T is None else real_T.sum()
    return Tally(counts_LE, dropped_L, probability_sum_LE, entropy_sum_L, num_tokens)


def _tally_layer(
    logits_TE: Tensor,
    ids_TK: Tensor,
    kept_TK: Tensor | None,
    assigned_TK: Tensor | None = None,
    *,
    real_T: Tensor | None,
    gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    probabilities_TE = token_probabilities(logits_TE, gate)
    dropped_TK = torch.zeros_like(ids_TK, dtype=torch.bool) if kept_TK is None else ~kept_TK
    if assigned_TK is not None:
        dropped_TK = dropped_TK & assigned_TK
    if real_T is not None:
        probabilities_TE = probabilities_TE.where(real_T[:, None], 0.0)  # also where padding's logits are no numbers
        dropped_TK = dropped_TK & real_T[:, None]
    counts_E = count_assignments(ids_TK, logits_TE.shape[-1], real_T, assigned_TK)
    return counts_E, dropped_TK.sum(), probabilities_TE.sum(dim=0), entropy(probabilities_TE).sum()


def add(first: Tally, second: Tally) -> Tally:
    """The tally of both batches' tokens (`+` would append one tuple to the other)."""
    return Tally(*(a + b for a, b in zip(first, second, strict=True)))


def read_layers(total: Tally) -> dict[str, Tensor]:
    """Metric -> its value in each layer, fp64 [L]; NaN where there is nothing to divide by.

    | name | meaning |
    |---|---|
    | max_vio | of the summed counts, MaxVio_global: its floor falls with the tokens, unlike one step's |
    | load_entropy | H(share)/ln E of the assignments |
    | token_entropy, expert_information | see the module docstring |
    | dead_expert_frac | experts that no token chose; NaN when the tokens are too few to tell |
    | dropped_frac | assignments without room, of all |
    """
    counts_LE = total.counts_LE.double()
    mean_entropy_L = total.entropy_sum_L / total.tokens
    return {
        "max_vio": max_vio(total.counts_LE).double(),
        "load_entropy": load_entropy(counts_LE),
        "token_entropy": mean_entropy_L / math.log(counts_LE.shape[-1]),
        "expert_information": information(total.probability_sum_LE / total.tokens, mean_entropy_L),
        "dead_expert_frac": unused_expert_frac(total.counts_LE, total.tokens),
        "dropped_frac": total.dropped_L / counts_LE.sum(dim=-1),
    }


def read(total: Tally) -> dict[str, Tensor]:
    """`val/<metric>` -> mean over layers, a scalar on the device, of everything in `read_layers`."""
    return {f"val/{name}": value_L.mean() for name, value_L in read_layers(total).items()}
