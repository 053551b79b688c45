"""Carrying tokens to experts and back; which way is decided by what the router says was kept, and how many there are.

| routing | way |
|---|---|
| few tokens on a processor, no gradient | few: laid out on the host, each chosen expert read once (few_tokens.py) |
| nothing dropped | grouped: assignments sorted by expert, each expert's tokens one block |
| a fixed capacity | batched: one tensor [E, C, D] of all slots; sizes are known, so nothing waits for the host |
| any number kept | sparse: the kept ones sorted by expert; their number is read by the host once per layer |
A dropped assignment has no row: its output is 0, and the residual stream carries the token on.

The grouped way is gathers in both directions, in the backward pass too: a token knows its rows and a row its token, so
nothing is added in place or summed in an order of chance.

Axes: T tokens, D model dim, K experts per token, N = T*K assignments, E experts, C slots per expert, P rows presented
to experts (sorted by expert, blocks filled up to the sizes that the kernel asks for), R kept assignments or slots, S
sampled tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chronomoe.model.buffers import BUFFERS
from chronomoe.model.capacity import place_in_line
from chronomoe.model.experts import ExpertBank
from chronomoe.model.few_tokens import lay_out_few, take
from chronomoe.model.router import RouterOutput, count_by_expert


class Dispatched(NamedTuple):
    mixture_TD: Tensor
    """sum over K of weight times expert output."""
    outputs_of: Callable[[Tensor], Tensor]
    """Token numbers int64 [S] -> their unweighted expert outputs [S, K, D]; 0 where dropped."""


def dispatch(x_TD: Tensor, routing: RouterOutput, experts: ExpertBank) -> Dispatched:
    if routing.capacity is None and experts.takes_few(x_TD):
        return dispatch_few(x_TD, routing, experts)
    if routing.kept_TK is None:
        return dispatch_grouped(x_TD, routing, experts)
    if routing.capacity is None:
        return dispatch_sparse(x_TD, routing, routing.kept_TK, experts)
    return dispatch_batched(x_TD, routing, routing.kept_TK, routing.capacity, experts)


def order_by_expert(topk_expert_ids_TK: Tensor) -> Tensor:
    """Positions in the flat [T*K] list of assignments, in expert order, int64 [N]; equal experts keep the tokens'
    order."""
    return topk_expert_ids_TK.flatten().argsort(stable=True)


ROWS_STEP = 512
"""Filled blocks are filled up to a multiple of this in all, so that steps take and free memory of few sizes."""


class Layout(NamedTuple):
    """Which row is whose."""

    row_TK: Tensor
    """int64: where each assignment stands."""
    token_P: Tensor
    """int64: whose row this is; a row that only fills up a block, or stands behind the last one, repeats token 0 and is
    read by nobody."""
    rows_per_expert_E: Tensor
    """int64, the filling included."""


def lay_out(topk_expert_ids_TK: Tensor, tokens_per_expert_E: Tensor, block_sizes: list[int] | None) -> Layout:
    """`block_sizes`: the numbers of rows an expert's block may have, rising; None: any."""
    order_N = order_by_expert(topk_expert_ids_TK)
    token_N = order_N // topk_expert_ids_TK.shape[1]
    place_N = torch.arange(len(order_N), device=order_N.device)
    rows_E, token_P = tokens_per_expert_E, token_N
    if block_sizes is not None:
        allowed = torch.tensor(block_sizes, device=order_N.device)
        rows_E = allowed[torch.searchsorted(allowed, tokens_per_expert_E)]
        filling_E = rows_E - tokens_per_expert_E
        in_front_E = filling_E.cumsum(0) - filling_E
        place_N += in_front_E.repeat_interleave(tokens_per_expert_E, output_size=len(order_N))
        num_rows = -(-int(rows_E.sum()) // ROWS_STEP) * ROWS_STEP
        token_P = order_N.new_zeros(num_rows).scatter_(0, place_N, token_N)
    row_N = torch.empty_like(order_N).scatter_(0, order_N, place_N)
    return Layout(row_N.view_as(topk_expert_ids_TK), token_P, rows_E)


def gather(rows_TD: Tensor, number_P: Tensor) -> Tensor:
    """The rows of these numbers, [P, D], in a buffer lent."""
    return torch.index_select(rows_TD, 0, number_P, out=BUFFERS.lend(rows_TD, len(number_P), rows_TD.shape[1]))


def sum_rows(rows_PD: Tensor, row_TK: Tensor) -> Tensor:
    """sum over k of rows[row_tk], [T, D]."""
    total_TD = rows_PD.index_select(0, row_TK[:, 0])
    for row_T in row_TK.unbind(1)[1:]:
        total_TD += rows_PD.index_select(0, row_T)
    return total_TD


class Present(torch.autograd.Function):
    """x_TD -> x_PD: every row its token. Backward: every token the sum of its rows."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, row_TK: Tensor, token_P: Tensor) -> Tensor:
        ctx.save_for_backward(row_TK)
        return gather(x_TD, token_P)

    @staticmethod
    def backward(ctx: Any, d_x_PD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return sum_rows(d_x_PD, *ctx.saved_tensors), None, None


class Combine(torch.autograd.Function):
    """(y_PD, w_TK) -> sum over k of w_tk y[row_tk], in y's dtype. Rows that fill up get a gradient of 0."""

    @staticmethod
    def forward(ctx: Any, y_PD: Tensor, weights_TK: Tensor, row_TK: Tensor, token_P: Tensor) -> Tensor:
        ctx.save_for_backward(y_PD, weights_TK, row_TK, token_P)
        weights_TK = weights_TK.to(y_PD.dtype)
        total_TD = y_PD.index_select(0, row_TK[:, 0]).mul_(weights_TK[:, :1])
        for k in range(1, row_TK.shape[1]):
            total_TD.addcmul_(y_PD.index_select(0, row_TK[:, k]), weights_TK[:, k : k + 1])
        return total_TD

    @staticmethod
    def backward(ctx: Any, d_y_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        y_PD, weights_TK, row_TK, token_P = ctx.saved_tensors
        weight_P = weights_TK.new_zeros(len(token_P)).scatter_(0, row_TK.flatten(), weights_TK.flatten())
        d_y_PD = gather(d_y_TD, token_P)
        d_weight_P = torch.linalg.vecdot(d_y_PD.to(weights_TK.dtype), y_PD.to(weights_TK.dtype))
        return d_y_PD.mul_(weight_P[:, None].to(d_y_PD.dtype)), d_weight_P[row_TK], None, None


def dispatch_grouped(x_TD: Tensor, routing: RouterOutput, experts: ExpertBank) -> Dispatched:
    ids_TK = routing.topk_expert_ids_TK
    layout = lay_out(ids_TK, routing.tokens_per_expert_E, experts.block_sizes(x_TD.device.type, x_TD.dtype))
    x_PD: Tensor = Present.apply(x_TD, layout.row_TK, layout.token_P)
    y_PD = experts(x_PD, layout.rows_per_expert_E)
    mixture_TD: Tensor = Combine.apply(y_PD, routing.topk_weights_TK, layout.row_TK, layout.token_P)

    def outputs_of(tokens_S: Tensor) -> Tensor:
        rows_SK = layout.row_TK.index_select(0, tokens_S)
        return y_PD.index_select(0, rows_SK.flatten()).view(*rows_SK.shape, -1)

    return Dispatched(mixture_TD, outputs_of)


def dispatch_few(x_TD: Tensor, routing: RouterOutput, experts: ExpertBank) -> Dispatched:
    ids_TK, kept_TK = routing.topk_expert_ids_TK, routing.kept_TK
    kept_N = None if kept_TK is None else kept_TK.flatten().tolist()
    groups, row_N = lay_out_few(ids_TK.flatten().tolist(), kept_N, ids_TK.shape[1])
    if not groups:  # the threshold of expert choice may take nobody
        y_TKD = x_TD.new_zeros(*ids_TK.shape, x_TD.shape[1])
        return Dispatched(torch.zeros_like(x_TD), lambda tokens_S: y_TKD.index_select(0, tokens_S))
    y_TKD = take(experts.few(x_TD, groups), row_N).view(*ids_TK.shape, -1)
    if kept_TK is not None:
        y_TKD = y_TKD * kept_TK[:, :, None]
    mixture_T1D = torch.bmm(routing.topk_weights_TK[:, None].to(y_TKD.dtype), y_TKD)
    return Dispatched(mixture_T1D.squeeze(1), lambda tokens_S: y_TKD.index_select(0, tokens_S))


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
