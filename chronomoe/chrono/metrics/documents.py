"""Documents as the unit of chance: label permutation and bootstrap that keep every document whole.

    p = (1 + #{permuted >= observed})/(B + 1) ;  z = (observed - mean permuted)/sd permuted
Tokens of one document are alike, so a corpus holds far fewer independent draws than tokens. A null that deals labels to
tokens is many times too small; nothing here can do that, because tokens are counted per document first.

Axes: T tokens, K experts per token, M documents, R domains, E experts, B permutations or resamples; any leading axes of
the counts, such as layers, are kept and share the same B draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.settings import InputError

FEWEST_PERMUTATIONS, FEWEST_RESAMPLES = 199, 1000
ROUNDING = 1e-12
"""A permutation that gives the observed table again must count as reaching it, and differences below this are none."""


class Documents(NamedTuple):
    """Where each document's tokens went, and what it is labelled with; on the CPU, like all that follows from it."""

    counts_ME: Tensor
    """int64 [..., M, E] assignments; a document without tokens has no row."""
    domain_M: Tensor
    """int64 in [0, num_domains)."""
    num_domains: int


class Null(NamedTuple):
    """One statistic among its values under the null, fp64."""

    mean: Tensor
    sd: Tensor
    p_value: Tensor
    """One-sided, in [1/(B+1), 1]; NaN when the statistic is not defined."""
    z: Tensor
    """NaN when the null does not vary: then it says nothing."""


def count_documents(
    topk_expert_ids_TK: Tensor,
    document_T: Tensor,
    domain_T: Tensor,
    num_experts: int,
    *,
    num_domains: int | None = None,
    real_T: Tensor | None = None,
    assigned_TK: Tensor | None = None,
) -> Documents:
    """Count each document's assignments; `topk_expert_ids_TK` may have leading axes such as layers.

    Domains are numbered from 0 (`num_domains` of them; None: up to the largest label), documents in any way. Padding is
    False in `real_T`, a column that is a candidate only False in `assigned_TK`. Raises InputError for a document with
    two domains: a label that changes within a document (a turn, a phase) needs documents numbered by the pair.
    """
    amount_TK = torch.ones_like(topk_expert_ids_TK) if assigned_TK is None else assigned_TK.long()
    if real_T is not None:
        topk_expert_ids_TK, amount_TK = topk_expert_ids_TK[..., real_T, :], amount_TK[..., real_T, :]
        document_T, domain_T = document_T[real_T], domain_T[real_T]
    known_M, row_T = document_T.unique(return_inverse=True)
    domain_M = domain_T.new_empty(len(known_M)).scatter_(0, row_T, domain_T)
    if not torch.equal(domain_M[row_T], domain_T):
        raise InputError("a document has tokens of two domains: number documents by (document, domain)")
    cell_N = (row_T[:, None] * num_experts + topk_expert_ids_TK).flatten(-2)
    counts = cell_N.new_zeros(*cell_N.shape[:-1], len(known_M) * num_experts)
    counts.scatter_add_(-1, cell_N, amount_TK.flatten(-2))
    if num_domains is None:
        num_domains = int(domain_M.max()) + 1
    return Documents(counts.unflatten(-1, (len(known_M), num_experts)).cpu(), domain_M.cpu(), num_domains)


def deal_labels(documents: Documents, permutations: int, generator: torch.Generator) -> Tensor:
    """The domain x expert tables under the null, fp64 [..., B, R, E]: labels dealt anew to whole documents."""
    if permutations < FEWEST_PERMUTATIONS:
        raise InputError(f"permutations={permutations}: a p-value needs at least {FEWEST_PERMUTATIONS}")
    keys_BM = torch.rand(permutations, len(documents.domain_M), generator=generator)
    label_BM = documents.domain_M[keys_BM.argsort(dim=-1)]
    counts_ME = documents.counts_ME.double()
    rows = [(label_BM == domain).double() @ counts_ME for domain in range(documents.num_domains)]
    return torch.stack(rows, dim=-2)


def resample_documents(documents: Documents, resamples: int, generator: torch.Generator) -> Tensor:
    """Bootstrapped domain x expert tables, fp64 [..., B, R, E]: each domain's documents drawn with replacement."""
    if resamples < FEWEST_RESAMPLES:
        raise InputError(f"resamples={resamples}: an interval needs at least {FEWEST_RESAMPLES}")
    rows = []
    for domain in range(documents.num_domains):
        counts_ME = documents.counts_ME[..., documents.domain_M == domain, :].double()
        size = counts_ME.shape[-2]
        times_BM = torch.zeros(resamples, size, dtype=torch.float64)
        if size:
            drawn_BM = torch.randint(size, (resamples, size), generator=generator)
            times_BM.scatter_add_(1, drawn_BM, torch.ones_like(drawn_BM, dtype=torch.float64))
        rows.append(times_BM @ counts_ME)
    return torch.stack(rows, dim=-2)


def compare_with_null(observed: Tensor, permuted_B: Tensor) -> Null:
    """Where the observed statistic stands among its values under the null (last axis)."""
    mean, sd = permuted_B.mean(dim=-1), permuted_B.std(dim=-1)
    reached = permuted_B >= (observed - ROUNDING)[..., None]
    p_value = (1 + reached.sum(dim=-1).double()) / (permuted_B.shape[-1] + 1)
    z = ((observed - mean) / sd).where(sd > ROUNDING, math.nan)
    return Null(mean, sd, p_value.where(observed.isfinite(), math.nan), z)
