"""Every way of carrying tokens to experts against a loop over tokens, and the ways against each other.

Axes: T tokens, D model dim, E experts, K experts per token.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chronomoe.model.dispatch import Dispatched, dispatch_batched, dispatch_grouped, dispatch_sparse
from chronomoe.model.expert_choice import best_tokens
from chronomoe.model.experts import ExpertBank
from chronomoe.model.router import RouterOutput, TopKRouter, drop_overflow

DIM, HIDDEN, E, TOKENS = 8, 12, 5, 24
FACTORS = [0.1, 0.5, 1.0, 1.25, 4.0]
FIELD = torch.linspace(-1, 1, E), torch.zeros(E)


def make_bank(activation: str = "swiglu") -> ExpertBank:
    torch.manual_seed(0)
    bank = ExpertBank(E, DIM, HIDDEN, activation)
    for weight in bank.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return bank


def make_routing(
    top_k: int, factor: float | None, real_T: Tensor | None = None, num_tokens: int = TOKENS
) -> tuple[Tensor, RouterOutput]:
    torch.manual_seed(1)
    x_TD = torch.randn(num_tokens, DIM).requires_grad_()
    routing = TopKRouter(DIM, E, top_k, "selection")(x_TD, *FIELD)
    return x_TD, routing if factor is None else drop_overflow(routing, factor, real_T)


def one_expert(bank: ExpertBank, expert: int, x_D: Tensor) -> Tensor:
    hidden = bank.gate_up_EFD[expert] @ x_D
    if bank.activation == "swiglu":
        gate_F, up_F = hidden.chunk(2)
        return bank.down_EDF[expert] @ (gate_F * torch.sigmoid(gate_F) * up_F)
    return bank.down_EDF[expert] @ hidden.clamp(min=0)


def loop(x_TD: Tensor, routing: RouterOutput, bank: ExpertBank) -> tuple[Tensor, Tensor]:
    """(mixture [T, D], outputs [T, K, D]), one token and expert at a time; a dropped one adds nothing."""
    kept_TK = torch.ones_like(routing.topk_expert_ids_TK) if routing.kept_TK is None else routing.kept_TK
    outputs = [
        [one_expert(bank, int(e), x_D) if kept else torch.zeros(DIM) for e, kept in zip(ids, keeps, strict=True)]
        for x_D, ids, keeps in zip(x_TD, routing.topk_expert_ids_TK, kept_TK, strict=True)
    ]
    y_TKD = torch.stack([torch.stack(row) for row in outputs])
    return (routing.topk_weights_TK[..., None] * y_TKD).sum(dim=1), y_TKD


def run(way: str, x_TD: Tensor, routing: RouterOutput, bank: ExpertBank) -> Dispatched:
    if way == "grouped":
        return dispatch_grouped(x_TD, routing, bank)
    assert routing.kept_TK is not None
    assert routing.capacity is not None
    if way == "sparse":
        return dispatch_sparse(x_TD, routing, routing.kept_TK, bank)
    return dispatch_batched(x_TD, routing, routing.kept_TK, routing.capacity, bank)


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("top_k", [1, 2, E])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_values_and_gradients_equal_a_loop_over_tokens(way: str, factor: float, top_k: int, activation: str) -> None:
    (x_TD, routing), bank = make_routing(top_k, factor), make_bank(activation)
    ours_TD, outputs_of = run(way, x_TD, routing, bank)
    theirs_TD, y_TKD = loop(x_TD, routing, bank)
    torch.testing.assert_close(ours_TD, theirs_TD)
    tokens_S = torch.tensor([0, 7, TOKENS - 1, 7])
    torch.testing.assert_close(outputs_of(tokens_S), y_TKD[tokens_S])
    direction_TD = torch.linspace(-1, 1, ours_TD.numel()).view_as(ours_TD)
    inputs = [x_TD, *bank.parameters()]
    ours = torch.autograd.grad((ours_TD * direction_TD).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((theirs_TD * direction_TD).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_with_room_for_all_every_way_gives_the_same(activation: str, top_k: int) -> None:
    (x_TD, routing), bank = make_routing(top_k, float(E)), make_bank(activation)
    assert routing.kept_TK is not None
    assert routing.kept_TK.all()
    grouped = run("grouped", x_TD, routing, bank)
    for way in ("batched", "sparse"):
        other = run(way, x_TD, routing, bank)
        torch.testing.assert_close(other.mixture_TD, grouped.mixture_TD)
        every_T = torch.arange(TOKENS)
        torch.testing.assert_close(other.outputs_of(every_T), grouped.outputs_of(every_T))


@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_a_token_whose_experts_all_dropped_it_gets_nothing_and_gives_no_gradient(way: str) -> None:
    (x_TD, routing), bank = make_routing(1, 0.5), make_bank()
    assert routing.kept_TK is not None
    lost_T = ~routing.kept_TK[:, 0]
    assert 0 < int(lost_T.sum()) < TOKENS
    fixed = routing._replace(topk_weights_TK=routing.topk_weights_TK.detach())
    y_TD, outputs_of = run(way, x_TD, fixed, bank)
    assert not y_TD[lost_T].any()
    assert not outputs_of(lost_T.nonzero().flatten()).any()
    gradient_TD = torch.autograd.grad(y_TD.sum(), x_TD)[0]
    assert not gradient_TD[lost_T].any()
    assert gradient_TD[~lost_T].any(dim=-1).all()


def test_dropping_keeps_the_counts_and_takes_the_weights() -> None:
    _, dropless = make_routing(2, None)
    _, routing = make_routing(2, 0.5)
    assert torch.equal(routing.tokens_per_expert_E, dropless.tokens_per_expert_E)
    assert routing.capacity == 5  # ceil(24 * 2 * 0.5 / 5)
    assert torch.equal(routing.topk_weights_TK != 0, routing.kept_TK)
    assert torch.equal(routing.topk_weights_TK[routing.kept_TK], dropless.topk_weights_TK[routing.kept_TK])


def test_an_expert_never_has_more_slots_than_there_are_tokens() -> None:
    assert make_routing(2, 1e6)[1].capacity == TOKENS


@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_padding_takes_no_room_from_anyone(way: str) -> None:
    bank, real_T = make_bank(), torch.arange(TOKENS) % 3 != 1
    x_TD, dropless = make_routing(2, None)
    padded = drop_overflow(dropless, 0.75, real_T)
    alone = drop_overflow(
        dropless._replace(
            topk_expert_ids_TK=dropless.topk_expert_ids_TK[real_T], topk_weights_TK=dropless.topk_weights_TK[real_T]
        ),
        0.75,
        None,
    )
    assert torch.equal(padded.kept_TK[real_T], alone.kept_TK)
    assert not padded.kept_TK[~real_T].any()
    padded_TD, alone_TD = run(way, x_TD, padded, bank)[0], run(way, x_TD[real_T], alone, bank)[0]
    torch.testing.assert_close(padded_TD[real_T], alone_TD)
    assert not padded_TD[~real_T].any()


@pytest.mark.parametrize("way", ["batched", "sparse"])
def test_nothing_but_padding_is_nothing(way: str) -> None:
    bank, nobody_T = make_bank(), torch.zeros(TOKENS, dtype=torch.bool)
    x_TD, routing = make_routing(2, 1.0, nobody_T)
    assert not run(way, x_TD, routing, bank).mixture_TD.any()


def test_dropping_and_batched_products_never_ask_the_host() -> None:
    """The meta device has no values: whoever waits for one fails, as the sparse way does."""
    with torch.device("meta"):
        ids_TK, real_T = torch.empty(TOKENS, 2, dtype=torch.int64), torch.empty(TOKENS, dtype=torch.bool)
        scores_TE, counts_E = torch.empty(TOKENS, E), torch.empty(E, dtype=torch.int64)
        x_TD, tokens_S = torch.empty(TOKENS, DIM), torch.empty(3, dtype=torch.int64)
        bank = ExpertBank(E, DIM, HIDDEN)
        dropless = RouterOutput(ids_TK, torch.empty(TOKENS, 2), scores_TE, scores_TE, counts_E)
        routing = drop_overflow(dropless, 1.25, real_T)
        y_TD, outputs_of = run("batched", x_TD, routing, bank)
        assert y_TD.shape == x_TD.shape
        assert outputs_of(tokens_S).shape == (3, 2, DIM)
        assert best_tokens(scores_TE, 2.0, real_T).shape == (TOKENS, E)
        with pytest.raises(RuntimeError):
            run("sparse", x_TD, routing, bank)
