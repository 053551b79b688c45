"""Token-choice routing: which experts each token goes to, and with what weight.

    z = x W_gate (clean logits, fp32) ;  z_T = z + (z - mean_e z) (exp(-log_temperature) - 1) ;  s(.) the gate's score
    actuation "selection":  S = top-k of s(z_T) + bias,  w = weights of s(z)             (the field moves only S)
    actuation "logits":     S = top-k of z_T + bias,     w = weights of s(z_T + bias)
| gate | score s | weights over S | source |
|---|---|---|---|
| topk_softmax | z | softmax over the k scores | Mixtral, arXiv 2401.04088 |
| softmax | softmax over all E | the k scores as they are, at most 1 together | Switch 2101.03961, OLMoE 2409.02060 |
| sigmoid | sigmoid | the k scores over their sum | DeepSeek-V3, arXiv 2412.19437 |
The field (bias, log-temperature) is the controller's hand on the router; a neutral one is the plain router bit for bit.
Adding a constant to a token's logits moves nothing, except under the sigmoid, whose scores have an absolute zero.
Switch is k = 1 under the softmax gate. In training its router sees its input times uniform noise in 1 +- jitter, and a
capacity may drop assignments (capacity.py): they keep their counts and lose their weights.

Axes: T tokens, D model dim, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from chronomoe.model.capacity import capacity_of, first_come, room_of
from chronomoe.model.products import FEW_ROWS, full_precision


def wide(x: Tensor) -> torch.dtype:
    """What gates and rotary angles are formed in: fp32, whatever the precision around them; fp64 in a model of that."""
    return torch.promote_types(x.dtype, torch.float32)


class RouterOutput(NamedTuple):
    """One layer's routing decision. Nothing downstream recomputes any of it. Where fp32 is said, a model in fp64 has
    that."""

    topk_expert_ids_TK: Tensor
    """int64, distinct per token, strongest first."""
    topk_weights_TK: Tensor
    """fp32 mixing weights; 0 where an assignment was not kept."""
    logits_TE: Tensor
    """fp32 clean logits: before bias and temperature."""
    scores_TE: Tensor
    """What the gate ranks experts by, under the temperature and before any bias; fp32, no gradient."""
    tokens_per_expert_E: Tensor
    """int64 assignments to each expert before any is dropped, padding included."""
    kept_TK: Tensor | None = None
    """bool, False where the expert had no room for the token; None: nothing was dropped."""
    capacity: int | None = None
    """Slots of each expert; None: as many as it needs (dropless)."""
    price_E: Tensor | None = None
    """What the in-batch solver asks for each expert (scores minus price are selected by); None without one."""
    assigned_TK: Tensor | None = None
    """bool, False where a column is a candidate that was never assigned (expert choice); None: all are assignments."""


Balancer = Callable[[Tensor, Tensor, Tensor, int, Tensor | None], tuple[Tensor, Tensor | None]]
"""(logits_TE, scores_TE, expert_bias_E, top_k, real_T) -> (what to select by [T, E], price_E): assignment solved within
a batch, which looks at tokens to come and is therefore no rule for decoding (`chronomoe.model.assignment`)."""


def count_by_expert(expert_ids_N: Tensor, amounts_N: Tensor | None, num_experts: int) -> Tensor:
    """Sum of integer amounts per expert (None: of ones), int64 [E], without asking a GPU's host for sizes, as bincount
    would."""
    if amounts_N is None:
        if expert_ids_N.is_cpu:
            return expert_ids_N.bincount(minlength=num_experts)
        amounts_N = torch.ones_like(expert_ids_N)
    return torch.zeros(num_experts, dtype=torch.int64, device=expert_ids_N.device).scatter_add_(
        0, expert_ids_N, amounts_N
    )


def count_assignments(
    topk_expert_ids_TK: Tensor, num_experts: int, real_T: Tensor | None = None, assigned_TK: Tensor | None = None
) -> Tensor:
    """Assignments to each expert, int64 [E]. Left out: padding (False in `real_T`), and columns that are candidates
    only (False in `assigned_TK`, as expert choice has them)."""
    counted_TK = torch.ones_like(topk_expert_ids_TK)
    if assigned_TK is not None:
        counted_TK = counted_TK * assigned_TK
    if real_T is not None:
        counted_TK = counted_TK * real_T[:, None]
    return count_by_expert(topk_expert_ids_TK.flatten(), counted_TK.flatten(), num_experts)


def heat(logits_TE: Tensor, log_temperature_E: Tensor | None) -> Tensor:
    """The logits under a temperature, z_T of the module docstring: (z - mean z)/temperature up to a constant. None is
    the neutral one."""
    if log_temperature_E is None:
        return logits_TE
    centred_TE = logits_TE - logits_TE.mean(dim=-1, keepdim=True)
    return logits_TE + centred_TE * torch.expm1(-log_temperature_E)


def score(logits_TE: Tensor, gate: str) -> Tensor:
    """What experts are ranked by, fp32 [T, E]."""
    if gate == "softmax":
        return logits_TE.softmax(dim=-1)
    return logits_TE.sigmoid() if gate == "sigmoid" else logits_TE


def mixing_weights(logits_TE: Tensor, expert_ids_TK: Tensor, gate: str) -> Tensor:
    """The gate's weights for the chosen experts, fp32 [T, K]; logarithms are taken where a sum could vanish."""
    if gate == "softmax":
        return logits_TE.softmax(dim=-1).gather(-1, expert_ids_TK)
    chosen_TK = logits_TE.gather(-1, expert_ids_TK)
    return (logsigmoid(chosen_TK) if gate == "sigmoid" else chosen_TK).softmax(dim=-1)


def select_largest(ranked_TE: Tensor, top_k: int) -> Tensor:
    """The positions of the `top_k` largest of each row, largest first, int64 [T, K], distinct whatever the row holds.

    On a processor the largest is taken again and again: for the few experts of a token that is several times faster
    than torch's topk, which partially sorts every row; a handful of rows is soon sorted. Both give a tie to the lower
    expert, so that a token decoded alone goes where it goes in its sequence.
    """
    if not ranked_TE.is_cpu or top_k > 4:
        return ranked_TE.topk(top_k, dim=-1).indices
    if len(ranked_TE) <= FEW_ROWS:
        return ranked_TE.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    lowest = torch.finfo(ranked_TE.dtype).min  # what was chosen falls below it, minus infinity does not
    rest_TE, chosen = ranked_TE.detach().clamp(min=lowest), []
    for k in range(top_k):
        chosen.append(rest_TE.argmax(dim=-1, keepdim=True))
        if k + 1 < top_k:
            rest_TE = rest_TE.scatter(-1, chosen[-1], float("-inf"))
    return torch.cat(chosen, dim=-1)


class TopKRouter(nn.Module):
    """Every token takes its `top_k` best experts. `balancer` may be set by who trains the model.

    Evaluation and decoding know neither jitter nor capacity: nothing is dropped there, so that a token's output does
    not depend on what else is in its batch.
    """

    balancer: Balancer | None = None
    """Solves the assignment of a whole batch in training; evaluation selects by score and bias alone, unless
    `balance_evaluation` is set."""
    balance_evaluation: bool = False

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int,
        actuation: str,
        gate: str = "topk_softmax",
        *,
        capacity_factor: float | None = None,
        jitter: float = 0.0,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.top_k, self.gate_kind = top_k, gate
        self.capacity_factor, self.jitter = capacity_factor, jitter
        self.steer_weights = actuation == "logits"

    def clean_logits(self, x_TD: Tensor) -> Tensor:
        x_TD = x_TD.to(wide(x_TD))
        if self.training and self.jitter > 0:
            # Drawn from the global generator, which training seeds for every micro-batch: a resumed run draws the same.
            x_TD = x_TD * (1.0 + self.jitter * (2.0 * torch.rand_like(x_TD) - 1.0))
        return linear(x_TD, self.gate.weight.to(x_TD.dtype))

    def rank(self, heated_TE: Tensor, scores_TE: Tensor, expert_bias_E: Tensor) -> Tensor:
        """What the top k are taken of, [T, E]; steered logits rank as their scores do, which may saturate."""
        return (heated_TE if self.steer_weights else scores_TE) + expert_bias_E

    def select(self, logits_TE: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor | None) -> Tensor:
        """The experts of tokens with these clean logits under this field, int64 [T, K]; no balancer is asked."""
        heated_TE = heat(logits_TE, log_temperature_E)
        scores_TE = score(heated_TE, self.gate_kind)
        return select_largest(self.rank(heated_TE, scores_TE, expert_bias_E), self.top_k)

    def forward(
        self, x_TD: Tensor, expert_bias_E: Tensor, log_temperature_E: Tensor | None, real_T: Tensor | None = None
    ) -> RouterOutput:
        """`real_T` (bool, False at padding): padding has no place in what a balancer solves and takes no capacity."""
        # The gate runs in fp32 whatever the precision around it: its logits decide discontinuously.
        with full_precision(x_TD.device.type):
            logits_TE = self.clean_logits(x_TD)
            heated_TE = heat(logits_TE, log_temperature_E)
            steered_TE = heated_TE + expert_bias_E if self.steer_weights else logits_TE
            heated_TE = heated_TE.detach()
            scores_TE = score(heated_TE, self.gate_kind)
            ranked_TE, price_E = self.rank(heated_TE, scores_TE, expert_bias_E), None
            if self.balancer is not None and (self.training or self.balance_evaluation):
                ranked_TE, price_E = self.balancer(heated_TE, scores_TE, expert_bias_E, self.top_k, real_T)
            ids_TK = select_largest(ranked_TE, self.top_k)
            weights_TK = mixing_weights(steered_TE, ids_TK, self.gate_kind)
            tokens_per_expert_E = count_by_expert(ids_TK.flatten(), None, logits_TE.shape[-1])
        routing = RouterOutput(ids_TK, weights_TK, logits_TE, scores_TE, tokens_per_expert_E, price_E=price_E)
        if self.capacity_factor is None or not self.training:
            return routing
        return drop_overflow(routing, self.capacity_factor, real_T)


def drop_overflow(routing: RouterOutput, capacity_factor: float, real_T: Tensor | None) -> RouterOutput:
    """Let every expert keep the first tokens it has room for, in the batch's order."""
    ids_TK = routing.topk_expert_ids_TK
    (num_tokens, top_k), num_experts = ids_TK.shape, routing.logits_TE.shape[-1]
    room = room_of(num_tokens, top_k, num_experts, capacity_factor, real_T)
    kept_TK = first_come(ids_TK, room, num_experts, real_T)
    return routing._replace(
        topk_weights_TK=routing.topk_weights_TK.masked_fill(~kept_TK, 0.0),
        kept_TK=kept_TK,
        capacity=min(num_tokens, capacity_of(num_tokens * top_k, num_experts, capacity_factor)),
    )
