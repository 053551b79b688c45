"""Carrying tokens to experts and back, three ways; which one is decided by what the router says was kept.

| routing | way |
|---|---|
| nothing dropped | grouped: assignments sorted by expert, each expert's tokens one block |
| a fixed capacity | batched: one tensor [E, C, D] of all slots; sizes are known, so nothing waits for the host |
| any number kept | sparse: the kept ones sorted by expert; their number is read by the host once per layer |
A dropped assignment has no row: its output is 0, and the residual stream carries the token on.

Axes: T tokens, D model dim, K experts per token, N = T*K assignments, E experts, C slots per expert, R rows presented
to experts (sorted by expert), S sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from chronomoe.model.capacity import place_in_line
from chronomoe.model.experts import ExpertBank
from chronomoe.model.router import RouterOutput, count_by_expert


class Dispatched(NamedTuple):
    mixture_TD: Tensor
    """sum over K of weight times expert output."""
    outputs_of: Callable[[Tensor], Tensor]
    """Token numbers int64 [S] -> their unweighted expert outputs [S, K, D]; 0 where dropped."""


def dispatch(x_TD: Tensor, routing: RouterOutput, experts: ExpertBank) -> Dispatched:
    if routing.kept_TK is None:
        return dispatch_grouped(x_TD, routing, experts)
    if routing.capacity is None:
        return dispatch_sparse(x_TD, routing, routing.kept_TK, experts)
    return dispatch_batched(x_TD, routing, routing.kept_TK, routing.capacity, experts)


def order_by_expert(topk_expert_ids_TK: Tensor) -> Tensor:
    """Positions in the flat [T*K] list of assignments, in expert order, int64 [N]; equal experts keep the tokens'
    order."""
    return topk_expert_ids_TK.flatten().argsort(stable=True)


def dispatch_grouped(x_TD: Tensor, routing: RouterOutput, experts: ExpertBank) -> Dispatched:
    order_N = order_by_expert(routing.topk_expert_ids_TK)
    top_k = routing.topk_expert_ids_TK.shape[1]
    y_ND = experts(x_TD[order_N // top_k], routing.tokens_per_expert_E)
    y_TKD = torch.empty_like(y_ND).index_copy(0, order_N, y_ND).view(*routing.topk_expert_ids_TK.shape, -1)
    weights_T1K = routing.topk_weights_TK[:, None, :].to(y_TKD.dtype)
    return Dispatched((weights_T1K @ y_TKD).squeeze(1), lambda tokens_S: y_TKD[tokens_S])


def dispatch_batched(
    x_TD: Tensor, routing: RouterOutput, kept_TK: Tensor, capacity: int, experts: ExpertBank
) -> Dispatched:
    num_experts = routing.logits_TE.shape[-1]
    num_slots = num_experts * capacity
    ids_N, kept_N = routing.topk_expert_ids_TK.flatten(), kept_TK.flatten()
    slot_N = ids_N * capacity + place_in_line(ids_N, kept_N, num_experts)
    slot_N = slot_N.where(kept_N, num_slots)  # the dropped share one slot more, which is then left out
    every_N = torch.arange(len(ids_N), device=ids_N.device)
    assignment_R = every_N.new_full((num_slots + 1,), len(ids_N)).index_copy(0, slot_N, every_N)[:-1]
    x_ECD = gather_rows(x_TD, assignment_R // kept_TK.shape[1]).view(num_experts, capacity, -1)
    return combine(experts.batched(x_ECD).flatten(0, 1), assignment_R, routing)


def dispatch_sparse(x_TD: Tensor, routing: RouterOutput, kept_TK: Tensor, experts: ExpertBank) -> Dispatched:
    num_experts = routing.logits_TE.shape[-1]
    ids_TK = routing.topk_expert_ids_TK.where(kept_TK, num_experts)
    assignment_R = order_by_expert(ids_TK)[: int(kept_TK.sum())]
    kept_per_expert_E = count_by_expert(routing.topk_expert_ids_TK.flatten(), kept_TK.flatten().long(), num_experts)
    y_RD = experts(gather_rows(x_TD, assignment_R // kept_TK.shape[1]), kept_per_expert_E)
    return combine(y_RD, assignment_R, routing)


def gather_rows(rows_ND: Tensor, number_R: Tensor) -> Tensor:
    """The rows of these numbers, [R, D]; the number past the last means none and reads 0."""
    return torch.cat((rows_ND, rows_ND.new_zeros(1, rows_ND.shape[1]))).index_select(0, number_R)


def combine(y_RD: Tensor, assignment_R: Tensor, routing: RouterOutput) -> Dispatched:
    """Weigh and sum what the experts said; `assignment_R` is T*K for a row that stands for none."""
    num_tokens, top_k = routing.topk_weights_TK.shape
    weight_R1 = gather_rows(routing.topk_weights_TK.reshape(-1, 1), assignment_R).to(y_RD.dtype)
    mixture_TD = y_RD.new_zeros(num_tokens + 1, y_RD.shape[1]).index_add(0, assignment_R // top_k, weight_R1 * y_RD)
    every_R = torch.arange(len(assignment_R), device=assignment_R.device)
    row_TK = every_R.new_full((num_tokens * top_k + 1,), len(every_R)).index_copy(0, assignment_R, every_R)
    row_TK = row_TK[:-1].view(num_tokens, top_k)

    def outputs_of(tokens_S: Tensor) -> Tensor:
        return gather_rows(y_RD, row_TK[tokens_S].flatten()).view(len(tokens_S), top_k, -1)

    return Dispatched(mixture_TD[:-1], outputs_of)
