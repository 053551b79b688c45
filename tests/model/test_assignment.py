"""In-batch assignment against sorted lists, double loops in float64 and the published while-loop.

Axes: T tokens, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.model.assignment import sinkhorn, solve_prices, upper_quantile

seeds = st.integers(0, 10_000)
Solve = Callable[[Tensor, Tensor | None], Tensor]


def draw(tokens: int, experts: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal scores whose experts are not equally popular."""
    generator = torch.Generator().manual_seed(seed)
    taste_E = 0.5 * torch.randn(experts, generator=generator, dtype=dtype)
    return torch.randn(tokens, experts, generator=generator, dtype=dtype) + taste_E


def loads(ranked_TE: Tensor, top_k: int) -> Tensor:
    return ranked_TE.topk(top_k, dim=-1).indices.flatten().bincount(minlength=ranked_TE.shape[-1])


def sorted_quantile(column: list[float], rank: float) -> float:
    """The value at place `rank` (from 0) of the falling column, between neighbours linearly."""
    if not column:
        return 0.0
    falling, rank = sorted(column, reverse=True), min(rank, len(column) - 1.0)
    low, high = math.floor(rank), math.ceil(rank)
    return falling[low] + (rank - low) * (falling[high] - falling[low])


def looped_prices(scores_TE: Tensor, price: list[float], top_k: int, rounds: int) -> list[float]:
    """BIP as published, one token and one expert at a time."""
    tokens, experts = scores_TE.shape
    rows = [[value - min(0.0, *row) for value in row] for row in scores_TE.tolist()]
    for _ in range(rounds):
        worth = []
        for row in rows:
            net = sorted((row[e] - price[e] for e in range(experts)), reverse=True)
            worth.append(max(0.0, net[top_k]))
        for e in range(experts):
            price[e] = max(
                0.0, sorted_quantile([rows[t][e] - worth[t] for t in range(tokens)], top_k * tokens / experts)
            )
    return price


def published_sinkhorn(logits_TE: Tensor, tolerance: float) -> Tensor:
    """The log of d0 A d1 after Megatron-LM's loop."""
    cost_TE, epsilon = logits_TE.exp(), 1e-8
    tokens, experts = cost_TE.shape
    left_T, right_E, error = torch.ones(tokens).double(), torch.ones(experts).double(), 1e9
    while error > tolerance:
        before_E = right_E
        left_T = 1 / (tokens * ((right_E * cost_TE).sum(1) + epsilon))
        right_E = 1 / (experts * ((left_T[:, None] * cost_TE).sum(0) + epsilon))
        error = float((before_E - right_E).abs().mean())
    return (left_T[:, None] * cost_TE * right_E).log()


@given(
    seed=seeds,
    tokens=st.integers(1, 40),
    experts=st.integers(2, 7),
    share=st.floats(0.0, 1.0),
    padded=st.booleans(),
)
def test_the_quantile_is_that_of_a_sorted_list(
    seed: int, tokens: int, experts: int, share: float, padded: bool
) -> None:
    values_TE = draw(tokens, experts, seed)
    real_T = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < 0.6 if padded else None
    found_E = upper_quantile(values_TE, share, real_T)
    kept_TE = values_TE if real_T is None else values_TE[real_T]
    expected = [sorted_quantile(column, share * len(column)) for column in kept_TE.T.tolist()]
    torch.testing.assert_close(found_E, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(40, 8, 2), (60, 6, 3), (30_000, 6, 2), (21, 7, 1)])
def test_a_whole_number_of_tokens_lies_above_the_quantile(tokens: int, experts: int, top_k: int) -> None:
    values_TE = draw(tokens, experts, dtype=torch.float32)
    above_E = (values_TE > upper_quantile(values_TE, top_k / experts, None)).sum(dim=0)
    assert above_E.tolist() == [top_k * tokens // experts] * experts


def test_nobody_real_has_the_quantile_zero() -> None:
    assert upper_quantile(draw(5, 3), 0.5, torch.zeros(5, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(20, 5, 2), (23, 6, 1), (17, 4, 3)])
@pytest.mark.parametrize("rounds", [1, 3])
def test_prices_are_those_of_a_double_loop(tokens: int, experts: int, top_k: int, rounds: int) -> None:
    for seed in range(5):
        scores_TE, price_E = draw(tokens, experts, seed), draw(1, experts, seed + 99)[0].abs()
        ranked_TE, found_E = solve_prices(scores_TE, price_E, top_k, rounds, None)
        expected_E = torch.tensor(looped_prices(scores_TE, price_E.tolist(), top_k, rounds), dtype=torch.float64)
        torch.testing.assert_close(found_E, expected_E)
        shift_TE = ranked_TE - (scores_TE - found_E)  # a constant of each token, which ranks nothing
        torch.testing.assert_close(shift_TE, shift_TE[:, :1].expand_as(shift_TE))


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (16, 4), (8, 1)])
def test_many_rounds_balance_the_batch_within_a_few_tokens(experts: int, top_k: int) -> None:
    """Tokens that are indifferent at the prices remain: about one for each expert."""
    scores_TE = draw(512, experts).softmax(dim=-1)
    fair = 512 * top_k / experts
    ranked_TE, _ = solve_prices(scores_TE, torch.zeros(experts).double(), top_k, 100, None)
    off_by, off_by_before = ((loads(r, top_k) - fair).abs().max().item() for r in (ranked_TE, scores_TE))
    assert off_by <= experts
    assert off_by_before > 10 * off_by


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_sinkhorn_is_the_published_loop_up_to_a_factor_of_each_token(tolerance: float) -> None:
    for seed in range(5):
        logits_TE = 2.0 * draw(64, 8, seed)
        ours_TE = sinkhorn(logits_TE, 300, tolerance, None)
        apart_TE = ours_TE - published_sinkhorn(logits_TE, tolerance)
        spread_T = apart_TE.amax(dim=-1) - apart_TE.amin(dim=-1)
        assert spread_T.max() < 1e-6  # the epsilon is not shift-invariant, and we shift


def test_sinkhorn_balances_soft_assignments_and_stops_at_its_limit() -> None:
    logits_TE = 2.0 * draw(512, 8)
    converged_TE = sinkhorn(logits_TE, 300, 1e-7, None).softmax(dim=-1)
    torch.testing.assert_close(converged_TE.sum(dim=0), torch.full((8,), 64.0).double(), rtol=1e-4, atol=0)
    once_TE = sinkhorn(logits_TE, 1, 1e-10, None).softmax(dim=-1)
    assert (once_TE.sum(dim=0) - 64.0).abs().max() > 1.0


@pytest.mark.parametrize("size", [1e30, 1e4, 0.0])
def test_extreme_logits_stay_finite(size: float) -> None:
    signs_TE = draw(32, 6, dtype=torch.float32).sign()
    logits_TE = size * signs_TE
    logits_TE[:, 5] = -size  # an expert nobody wants
    assert sinkhorn(logits_TE, 100, 1e-4, None).isfinite().all()
    ranked_TE, price_E = solve_prices(logits_TE, torch.zeros(6), 2, 4, None)
    assert ranked_TE.isfinite().all()
    assert price_E.isfinite().all()


def by_price(scores_TE: Tensor, real_T: Tensor | None) -> Tensor:
    """s - q, without the token's shift."""
    return scores_TE - solve_prices(scores_TE, torch.zeros_like(scores_TE[0]), 2, 3, real_T)[1]


def by_sinkhorn(logits_TE: Tensor, real_T: Tensor | None) -> Tensor:
    return sinkhorn(logits_TE, 60, 1e-6, real_T)


both_solvers = pytest.mark.parametrize("solve", [by_price, by_sinkhorn])


@given(seed=seeds)
def test_a_constant_added_to_a_tokens_logits_moves_nothing_in_sinkhorn(seed: int) -> None:
    logits_TE = draw(24, 5, seed)
    moved_TE = logits_TE + 50.0 * draw(24, 1, seed + 1)
    torch.testing.assert_close(by_sinkhorn(moved_TE, None), by_sinkhorn(logits_TE, None))


@both_solvers
def test_padding_has_no_influence(solve: Solve) -> None:
    scores_TE, real_T = draw(30, 5), torch.arange(30) % 3 != 1
    alone_TE = solve(scores_TE[real_T], None)
    for padding in (-1e4, 0.0, 1e4):
        padded_TE = scores_TE.clone()
        padded_TE[~real_T, 2:] = padding
        torch.testing.assert_close(solve(padded_TE, real_T)[real_T], alone_TE)
    assert not torch.allclose(solve(scores_TE, ~real_T)[real_T], alone_TE)  # True is a token, not padding


@both_solvers
def test_a_batch_of_padding_is_no_error(solve: Solve) -> None:
    assert solve(draw(6, 4), torch.zeros(6, dtype=torch.bool)).isfinite().all()


@both_solvers
def test_renaming_tokens_and_experts_renames_the_assignment(solve: Solve) -> None:
    scores_TE = draw(40, 6)
    token_T, expert_E = torch.randperm(40, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(
        solve(scores_TE[token_T][:, expert_E], None), solve(scores_TE, None)[token_T][:, expert_E]
    )
