"""Which experts are chosen together: all k(k-1)/2 pairs of every token, by one matrix product.

    C = M^T M over the selection map M [T, E] ;  P(j|i) = C_ij / C_ii ;  lift = T C_ij / (C_ii C_jj) / null
A token picks without replacement, so independent experts do not read a raw lift of 1 but E(k-1)/(k(E-1)) (0.571 for 2
of 8): the lift here is divided by it. With one expert a token (k = 1) there are no pairs, and no lift: it is NaN.

Axes: T tokens, K experts per token, E experts; a leading axis of layers is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from chronomoe.chrono.metrics.change import selection_map


class LiftExtremes(NamedTuple):
    """Over all pairs of one layer; NaN when no pair has a lift."""

    lowest: Tensor
    """0 when two experts that are both in use never meet."""
    highest: Tensor


def count_pairs(
    topk_expert_ids_TK: Tensor, num_experts: int, real_T: Tensor | None = None, assigned_TK: Tensor | None = None
) -> Tensor:
    """C: tokens that chose both i and j, int64 [..., E, E], symmetric; the diagonal counts those that chose i.

    Counts of batches and ranks add up. Padding is False in `real_T`, a candidate only False in `assigned_TK`.
    """
    map_TE = selection_map(topk_expert_ids_TK, num_experts, assigned_TK)
    if real_T is not None:
        map_TE = map_TE & real_T[:, None]
    chosen_TE = map_TE.double()  # exact up to 2^53 tokens, and unlike integers multiplied on every device
    return (chosen_TE.mT @ chosen_TE).long()


def conditional_probability(pairs_EE: Tensor) -> Tensor:
    """P(j|i), fp64, row i: of the tokens that chose i, the share that chose j as well; 1 on the diagonal.

    Random routing reads (k-1)/(E-1) off the diagonal. The row of an expert without tokens is NaN.
    """
    return pairs_EE.double() / pairs_EE.diagonal(dim1=-2, dim2=-1)[..., :, None]


def lift(pairs_EE: Tensor) -> Tensor:
    """How much oftener than by chance i and j meet, fp64, symmetric: 1 for random subsets, of k experts or of any
    sizes.

    The diagonal is NaN, as is the row and column of an expert without tokens, and everything for k = 1.
    """
    pairs_EE = pairs_EE.double()
    num_experts = pairs_EE.shape[-1]
    count_E = pairs_EE.diagonal(dim1=-2, dim2=-1)
    # A token adds k(k-1) to the sum of C off the diagonal and k on it: null/T can be read off C itself.
    picks = count_E.sum(dim=-1)
    null_per_token = num_experts / (num_experts - 1) * (pairs_EE.sum(dim=(-2, -1)) - picks) / picks.square()
    expected_EE = count_E[..., :, None] * count_E[..., None, :] * null_per_token[..., None, None]
    pairs_EE = pairs_EE.where(expected_EE > 0, math.nan)
    pairs_EE.diagonal(dim1=-2, dim2=-1).fill_(math.nan)
    return pairs_EE / expected_EE


def lift_extremes(lift_EE: Tensor) -> LiftExtremes:
    """The least and the most attached pair of each layer."""
    defined_N = lift_EE.isfinite().flatten(-2)
    lift_N = lift_EE.flatten(-2)
    lowest = lift_N.where(defined_N, math.inf).amin(dim=-1)
    highest = lift_N.where(defined_N, -math.inf).amax(dim=-1)
    any_defined = defined_N.any(dim=-1)
    return LiftExtremes(lowest.where(any_defined, math.nan), highest.where(any_defined, math.nan))
