"""Which experts serve which domains, and whether that is more than documents being documents.

    I(D;E) = H(D) + H(E) - H(D,E) of the domain x expert table ;  debiased = (I - m)/(min(H(D), H(E)) - m)
    separation S = sum_e Var_r(p_re), p_re the share of domain r's assignments that went to e
m is the mean under the null of `chronomoe.chrono.metrics.documents`: the same documents with their labels dealt anew.
A finite sample reads I > 0 and S > 0 without any specialisation; only what exceeds the null counts. An untrained router
on real text does exceed it, because it routes by token and domains differ in their words: report that lexical floor
beside every trained reading.

A turn's or a phase's label is treated like a domain's. Axes: M documents, R domains, E experts, B resamples; any
leading axes, such as layers, are kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.chrono.metrics.confidence import entropy
from chronomoe.chrono.metrics.documents import (
    ROUNDING,
    Documents,
    Null,
    compare_with_null,
    deal_labels,
    resample_documents,
)


class DomainInformation(NamedTuple):
    """What an expert's number tells about the domain, in one layer or in each. All fp64."""

    information: Tensor
    """I(D;E), nats, as it stands in the table (biased upwards)."""
    nmi: Tensor
    """I/sqrt(H(D) H(E)), in [0, 1], biased likewise; NaN for one domain or one used expert."""
    debiased: Tensor
    """0 under the null, 1 when the domain decides the expert (or the expert the domain); can be below 0. NaN when
    dealing the labels anew cannot lower I: one domain, or too few documents."""
    low: Tensor
    high: Tensor
    """95% interval of what `debiased` estimates, by the basic bootstrap over documents within their domain."""
    null: Null
    """Of `information`."""


class Separation(NamedTuple):
    value: Tensor
    """S, fp64, as it stands in the table (biased upwards)."""
    excess: Tensor
    """S - its mean under the null: 0 without specialisation."""
    null: Null


def domain_table(documents: Documents) -> Tensor:
    """Assignments of each domain to each expert, fp64 [..., R, E]."""
    domain_MR = torch.nn.functional.one_hot(documents.domain_M, documents.num_domains).double()
    return domain_MR.mT @ documents.counts_ME.double()


def domain_specialisation(table_RE: Tensor) -> Tensor:
    """N_eD/(N_D k p_e), fp64 [..., R, E]: how much oftener a domain's tokens choose e than all tokens do.

    1 is no preference, whatever the load: the baseline is the expert's own, not k/E. NaN for an unused expert and for a
    domain without tokens.
    """
    table_RE = table_RE.double()
    share_RE = table_RE / table_RE.sum(dim=-1, keepdim=True)
    load_E = table_RE.sum(dim=-2, keepdim=True) / table_RE.sum(dim=(-2, -1), keepdim=True)
    return share_RE / load_E


def mutual_information(table_RE: Tensor) -> Tensor:
    """I(D;E) of a table of counts, nats. Each of a token's k picks weighs 1/k, which cancels; NaN if empty."""
    domain_R, expert_E, joint_RE = _distributions(table_RE)
    return (entropy(domain_R) + entropy(expert_E) - entropy(joint_RE.flatten(-2))).clamp(min=0.0)


def domain_information(
    documents: Documents, *, permutations: int = 999, resamples: int = 2000, generator: torch.Generator
) -> DomainInformation:
    """The whole comparison. Raises InputError for fewer than 199 permutations or 1000 resamples.

    The interval is [2I - q_.975, 2I - q_.025] over resampled I, as a share of min(H(D), H(E)). The null mean is not
    subtracted from it: a resample carries the plug-in bias twice, so 2I - q is free of whatever bias there was, which
    is the null mean without specialisation and nothing with all of it. In between `debiased` is the more cautious of
    the two, and can lie near the lower end.
    """
    table_RE = domain_table(documents)
    domain_R, expert_E, _ = _distributions(table_RE)
    observed = mutual_information(table_RE)
    null = compare_with_null(observed, mutual_information(deal_labels(documents, permutations, generator)))
    domain_entropy, expert_entropy = entropy(domain_R), entropy(expert_E)
    most = torch.minimum(domain_entropy, expert_entropy)
    room = (most - null.mean).where(most - null.mean > ROUNDING, math.nan)
    resampled_B = mutual_information(resample_documents(documents, resamples, generator))
    quantiles = torch.quantile(resampled_B, resampled_B.new_tensor([0.975, 0.025]), dim=-1)
    low, high = (2 * observed - quantiles) / most.where(room.isfinite(), math.nan)
    norm = (domain_entropy * expert_entropy).sqrt()
    nmi = (observed / norm).where(norm > ROUNDING, math.nan)
    return DomainInformation(observed, nmi, (observed - null.mean) / room, low, high, null)


def separation(table_RE: Tensor) -> Tensor:
    """S = sum over experts of the variance of p_re over the domains that have tokens (population variance).

    Routing that ignores domains reads ((R-1)/R) mean_r (1 - k/E)/(k T_r), not 0, for independent tokens; more for
    documents.
    """
    share_RE = table_RE.double() / table_RE.sum(dim=-1, keepdim=True)
    deviation_RE = share_RE - share_RE.nanmean(dim=-2, keepdim=True)
    return deviation_RE.square().nanmean(dim=-2).sum(dim=-1)


def domain_separation(documents: Documents, *, permutations: int = 999, generator: torch.Generator) -> Separation:
    """S and what it exceeds its null by. Raises InputError for fewer than 199 permutations."""
    observed = separation(domain_table(documents))
    null = compare_with_null(observed, separation(deal_labels(documents, permutations, generator)))
    return Separation(observed, observed - null.mean, null)


def _distributions(table_RE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of domains, of experts and of both."""
    joint_RE = table_RE.double() / table_RE.sum(dim=(-2, -1), keepdim=True)
    return joint_RE.sum(dim=-1), joint_RE.sum(dim=-2), joint_RE
