"""How a family of pretrained models chooses and weighs experts, and how the field acts on it.

    z clean logits ;  z_T = heat(z) (model/router.py) ;  s = score(z_T) + c,  c the family's own correction bias or 0
    actuation "selection":  S = top-k of limit(s + bias),  w = weights of z          (the field moves only S)
    actuation "logits":     S = top-k of limit(score(z_T + bias) + c),  w = weights of z_T + bias
    weights over S: the scores of `gate`, over their sum where the family renormalises, times its scale
    limit: of `number` equal groups the `kept` best stay, a group being worth the sum of its `best` largest; the others
           are -inf, so that no bias reaches them (DeepSeek-V2, arXiv 2405.04434; V3, 2412.19437)
The gates and the units of the bias are those of chronomoe's own routers: under `topk_softmax` s is z itself, which
orders experts as the softmax does, and steered logits under either softmax rank as their scores do.

Axes: T tokens, E experts, K experts per token, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.model.router import Balancer, heat, score

SMALLEST = 1e-20
"""DeepSeek-V3's guard of the sum it divides by."""


class Groups(NamedTuple):
    number: int
    kept: int
    best: int
    """Experts whose sum a group is worth."""


class Rule(NamedTuple):
    top_k: int
    gate: str
    """topk_softmax, softmax or sigmoid, as in model/router.py."""
    renormalised: bool
    """Whether the weights of a token sum to `scale`."""
    scale: float = 1.0
    groups: Groups | None = None
    in_fp32: bool = False
    """Whether the gate's product is taken in fp32 whatever the model's precision."""


class Choice(NamedTuple):
    topk_expert_ids_TK: Tensor
    topk_weights_TK: Tensor
    """In the precision of the logits, with their gradient."""
    scores_TE: Tensor
    """What experts are ranked by before any bias of ours and any limit of groups."""
    price_E: Tensor | None = None
    """What an in-batch solver came to."""


def choose(
    rule: Rule,
    logits_TE: Tensor,
    bias_E: Tensor,
    log_temperature_E: Tensor | None,
    *,
    correction_E: Tensor | None = None,
    steer_weights: bool = False,
    balancer: Balancer | None = None,
    real_T: Tensor | None = None,
) -> Choice:
    """Route tokens with these logits (fp32 or wider) under a field."""
    heated_TE = heat(logits_TE, log_temperature_E)
    steered_TE = heated_TE + bias_E if steer_weights else logits_TE
    with torch.no_grad():
        scores_TE = corrected(score(heated_TE, rule.gate), correction_E)
        price_E = None
        if balancer is not None:
            ranked_TE, price_E = balancer(heated_TE, scores_TE, bias_E, rule.top_k, real_T)
        elif not steer_weights:
            ranked_TE = scores_TE + bias_E
        elif rule.gate == "sigmoid":
            ranked_TE = corrected(steered_TE.sigmoid(), correction_E)
        else:
            ranked_TE = steered_TE
        ids_TK = limit(ranked_TE, rule.groups).topk(rule.top_k, dim=-1).indices
    return Choice(ids_TK, weigh(rule, steered_TE, ids_TK), scores_TE, price_E)


def corrected(scores_TE: Tensor, correction_E: Tensor | None) -> Tensor:
    return scores_TE if correction_E is None else scores_TE + correction_E


def limit(ranked_TE: Tensor, groups: Groups | None) -> Tensor:
    """-inf outside each token's best groups."""
    if groups is None:
        return ranked_TE
    ranked_TGN = ranked_TE.unflatten(-1, (groups.number, -1))
    worth_TG = ranked_TGN.topk(groups.best, dim=-1).values.sum(dim=-1)
    kept_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    kept_TG.scatter_(-1, worth_TG.topk(groups.kept, dim=-1).indices, True)
    return ranked_TGN.masked_fill(~kept_TG[..., None], float("-inf")).flatten(-2)


def weigh(rule: Rule, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
    """The family's weights of the chosen experts, by the operations of transformers: equal ids, equal bits."""
    scores_TE = logits_TE.sigmoid() if rule.gate == "sigmoid" else logits_TE.softmax(dim=-1)
    weights_TK = scores_TE.gather(-1, ids_TK)
    if rule.renormalised:
        total_T1 = weights_TK.sum(dim=-1, keepdim=True)
        weights_TK = weights_TK / (total_T1 + SMALLEST if rule.gate == "sigmoid" else total_T1)
    return weights_TK * rule.scale
