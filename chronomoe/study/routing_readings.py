"""One model's routing of labelled tokens, read by every metric: what `python -m chronomoe.evaluate` writes per model.

| key of a layer | meaning |
|---|---|
| max_vio, load_entropy, token_entropy, expert_information, dead_expert_frac, dropped_frac | `metrics/confidence.py` |
| lift_lowest, lift_highest | the least and the most attached pair of experts, 1 by chance: `metrics/coactivation.py` |
| domain_information, domain_nmi | what an expert tells about the domain, nats and normalised; both biased upwards |
| domain_debiased, _low, _high, _p_value, _z | the same against permuted document labels: 0 by chance, 1 at most |
| separation, _excess, _p_value | spread of the domains' shares, and what of it permuted labels do not give |
| vocabulary, _chance, _corrected | share of a token id's favourite expert: `metrics/vocabulary.py` |
| domain_specialisation | [domains][experts]: how much oftener than all tokens a domain's choose an expert |

| key of a layer's `saturation` | meaning: `metrics/change.py` |
|---|---|
| agreement | mean share of a token's clean selection that the anchor's clean selection has too |
| chance | what independent selections of these loads would agree in |
| corrected | (agreement - chance)/(1 - chance): 1 is the anchor's routing, 0 is chance |
A metric that is not defined (one domain, one expert a token, too few documents) is None, never 0.

Axes: L MoE layers, T tokens, K experts per token, B sequences of S tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from chronomoe.chrono.metrics import change, coactivation, confidence, documents, specialisation, vocabulary
from chronomoe.chrono.metrics.confidence import Tally
from chronomoe.data.oracle import oracle_expert_ids, random_expert_ids
from chronomoe.model.lm import LanguageModel, number_documents

AVERAGED = (
    *("max_vio", "load_entropy", "token_entropy", "expert_information", "dead_expert_frac", "dropped_frac"),
    *("lift_lowest", "lift_highest", "domain_information", "domain_nmi", "domain_debiased"),
    *("separation", "separation_excess", "vocabulary", "vocabulary_chance", "vocabulary_corrected"),
)
"""Metrics that have a mean over layers; a mean of p-values or of interval ends would say nothing."""


class LabelledTokens(NamedTuple):
    token_ids_T: Tensor
    document_T: Tensor
    """int64: number of the token's document."""
    domain_T: Tensor
    """int64: index into `domains`."""
    domains: list[str]


class Effort(NamedTuple):
    """How much chance is simulated."""

    permutations: int
    resamples: int
    seed: int


class Forward(NamedTuple):
    """What a model did with the tokens."""

    loss: float
    """Mean cross-entropy, nats per token."""
    tally: Tally | None
    """None for a dense model."""
    topk_expert_ids_LTK: Tensor | None
    assigned_LTK: Tensor | None
    """bool, False where a column is a candidate only (expert choice); None: all are assignments."""
    clean_ids_LTK: Tensor | None
    """The top-k of the clean logits; None where tokens do not choose."""


@torch.no_grad()
def run_model(model: LanguageModel, batches: Iterable[dict[str, Tensor]], end_of_document: int, gate: str) -> Forward:
    """Losses and routing of all batches; the routing comes back on the CPU, in the batches' order."""
    loss_sum, num_tokens = 0.0, 0
    total: Tally | None = None
    ids: list[Tensor] = []
    assigned: list[Tensor] = []
    clean: list[Tensor] = []
    device = model.embedding.weight.device
    for batch in batches:
        input_ids_BS, targets_BS = batch["input_ids"].to(device), batch["targets"].to(device)
        document_BS = number_documents(input_ids_BS, end_of_document) if model.settings.document_mask else None
        output = model(input_ids_BS, document_BS=document_BS)
        flat_logits, targets_T = output.logits_BSV.flatten(0, 1).float(), targets_BS.flatten()
        loss_sum += cross_entropy(flat_logits, targets_T, reduction="sum").item()
        num_tokens += len(targets_T)
        if output.routings:
            seen = [(r.logits_TE, r.topk_expert_ids_TK, r.kept_TK, r.assigned_TK) for r in output.routings]
            found = confidence.tally(seen, gate=gate)
            total = found if total is None else confidence.add(total, found)
            ids.append(torch.stack([routing.topk_expert_ids_TK for routing in output.routings]).cpu())
            masks = [routing.assigned_TK for routing in output.routings if routing.assigned_TK is not None]
            assigned += [torch.stack(masks).cpu()] if masks else []
            top_k = ids[-1].shape[-1]
            clean += [] if masks else [torch.stack([r.logits_TE.topk(top_k).indices for r in output.routings]).cpu()]
    if total is not None:
        total = Tally(*(amount.cpu() for amount in total))
    joined = (torch.cat(parts, dim=1) if parts else None for parts in (ids, assigned, clean))
    return Forward(loss_sum / num_tokens, total, *joined)


def read_model(forward: Forward, tokens: LabelledTokens, effort: Effort) -> dict[str, Any]:
    """loss, perplexity, and of an MoE model `layers` (the table above, one dict a layer) and `mean` over layers."""
    found: dict[str, Any] = {"loss": forward.loss, "perplexity": math.exp(min(forward.loss, 700.0))}
    if forward.tally is None:
        return found
    metrics = read_routing(forward, tokens, effort)
    found["mean"] = {name: as_json(metrics[name].mean(dim=0)) for name in AVERAGED}
    found["layers"] = [
        {name: as_json(value_L[layer]) for name, value_L in metrics.items()}
        for layer in range(len(forward.tally.counts_LE))
    ]
    return found


def read_routing(forward: Forward, tokens: LabelledTokens, effort: Effort) -> dict[str, Tensor]:
    """Key of the table above -> its values, first axis L."""
    total, ids_LTK, assigned_LTK = forward.tally, forward.topk_expert_ids_LTK, forward.assigned_LTK
    assert total is not None
    assert ids_LTK is not None
    generator = torch.Generator().manual_seed(effort.seed)
    num_experts = total.counts_LE.shape[-1]
    by_document = documents.count_documents(
        ids_LTK,
        tokens.document_T,
        tokens.domain_T,
        num_experts,
        num_domains=len(tokens.domains),
        assigned_TK=assigned_LTK,
    )
    domain = specialisation.domain_information(
        by_document, permutations=effort.permutations, resamples=effort.resamples, generator=generator
    )
    apart = specialisation.domain_separation(by_document, permutations=effort.permutations, generator=generator)
    num_token_ids = int(tokens.token_ids_T.max()) + 1
    table_LVE = vocabulary.count_vocabulary(ids_LTK[..., 0], tokens.token_ids_T, num_token_ids, num_experts)
    words = vocabulary.vocabulary_specialisation(table_LVE, generator=generator)
    pairs_LEE = coactivation.count_pairs(ids_LTK, num_experts, assigned_TK=assigned_LTK)
    lift = coactivation.lift_extremes(coactivation.lift(pairs_LEE))
    return confidence.read_layers(total) | {
        "lift_lowest": lift.lowest,
        "lift_highest": lift.highest,
        "domain_information": domain.information,
        "domain_nmi": domain.nmi,
        "domain_debiased": domain.debiased,
        "domain_low": domain.low,
        "domain_high": domain.high,
        "domain_p_value": domain.null.p_value,
        "domain_z": domain.null.z,
        "separation": apart.value,
        "separation_excess": apart.excess,
        "separation_p_value": apart.null.p_value,
        "vocabulary": words.value,
        "vocabulary_chance": words.chance,
        "vocabulary_corrected": words.corrected,
        "domain_specialisation": specialisation.domain_specialisation(specialisation.domain_table(by_document)),
    }


def read_references(tokens: LabelledTokens, num_experts: int, top_k: int, effort: Effort) -> dict[str, Any]:
    """`oracle` and `random`: domain readings of two routings of these tokens that are known beforehand, the ceiling and
    the floor of specialisation (`chronomoe/data/oracle.py`)."""
    generator = torch.Generator().manual_seed(effort.seed)
    routings = {
        "oracle": oracle_expert_ids(tokens.domain_T, num_experts, top_k, len(tokens.domains)),
        "random": random_expert_ids(len(tokens.domain_T), num_experts, top_k, effort.seed),
    }
    found = {}
    for name, ids_TK in routings.items():
        counted = documents.count_documents(
            ids_TK, tokens.document_T, tokens.domain_T, num_experts, num_domains=len(tokens.domains)
        )
        domain = specialisation.domain_information(
            counted, permutations=effort.permutations, resamples=effort.resamples, generator=generator
        )
        values = {"debiased": domain.debiased, "low": domain.low, "high": domain.high}
        values |= {"p_value": domain.null.p_value, "z": domain.null.z}
        found[name] = {f"domain_{key}": as_json(value) for key, value in values.items()}
    return found


def read_saturation(now: Forward, anchor: Forward) -> dict[str, Any]:
    """How much of the anchor's routing of the same tokens is there already: `layers` (the second table) and `mean`."""
    assert now.tally is not None
    assert now.clean_ids_LTK is not None
    assert anchor.clean_ids_LTK is not None
    compared = now.clean_ids_LTK, anchor.clean_ids_LTK, now.tally.counts_LE.shape[-1]
    values = {
        "agreement": change.agreement(*compared),
        "chance": change.chance_agreement(*compared),
        "corrected": change.saturation(*compared),
    }
    return {
        "mean": {name: as_json(value_L.mean()) for name, value_L in values.items()},
        "layers": [{name: as_json(value_L[i]) for name, value_L in values.items()} for i in range(len(compared[0]))],
    }


def as_json(value: Tensor) -> Any:
    """Numbers in nested lists; what is not finite is None, which JSON can say."""
    if value.dim():
        return [as_json(part) for part in value]
    number = value.item()
    return number if math.isfinite(number) else None
