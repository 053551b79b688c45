"""Quantiles of the scores: exact and from histograms, against sorted lists and against each other.

The router's gate is the identity here, so that the logits are what a test says.

Axes: T tokens, E experts, L MoE layers, C channels.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.probes import (
    BINS,
    bin_range,
    decode_mean,
    exact_price,
    histogram_bias,
    margins,
    mean_reading,
    price_histogram,
)
from chronomoe.model.assignment import solve_prices, upper_quantile
from chronomoe.model.router import TopKRouter
from chronomoe.model.sensor import UNIT, LayerState

TOP_K = 2
seeds = st.integers(0, 10_000)


def draw(tokens: int, experts: int, seed: int = 0, spread: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    taste_E = spread * torch.randn(experts, generator=generator)
    return torch.randn(tokens, experts, generator=generator) + taste_E


def state_of(
    logits_TE: Tensor, bias_E: Tensor | None = None, gate: str = "sigmoid", real_T: Tensor | None = None
) -> LayerState:
    experts = logits_TE.shape[-1]
    bias_E = torch.zeros(experts) if bias_E is None else bias_E
    router = TopKRouter(experts, experts, TOP_K, "selection", gate)
    router.gate.weight.data = torch.eye(experts)
    routing = router(logits_TE, bias_E, torch.zeros(experts), real_T)
    return LayerState(0, routing, bias_E, real_T, lambda numbers_S: logits_TE[numbers_S], logits_TE)


def exact_bias(state: LayerState) -> Tensor:
    return -decode_mean(exact_price(TOP_K).read(state)[None])[0]


def bias_of(histogram_EC: Tensor, bias_E: Tensor) -> Tensor:
    share_L1 = torch.tensor([[TOP_K / len(bias_E)]], dtype=torch.float64)
    return histogram_bias(histogram_EC[None], bias_E[None], share_L1)[0]


def pooled_bias(state: LayerState) -> Tensor:
    return bias_of(price_histogram(TOP_K).read(state), state.expert_bias_E)


@given(price=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8))
def test_a_price_comes_back_from_fixed_point_and_a_mean_of_two_is_their_mean(price: list[float]) -> None:
    price_E = torch.tensor(price, dtype=torch.float64)
    alone_LE = decode_mean(mean_reading(price_E)[None])
    torch.testing.assert_close(alone_LE[0].double(), price_E, rtol=1e-6, atol=0.5 / UNIT)
    both_LE = decode_mean((mean_reading(price_E) + mean_reading(3.0 * price_E))[None])
    torch.testing.assert_close(both_LE[0].double(), 2.0 * price_E, rtol=1e-6, atol=0.5 / UNIT)


@pytest.mark.parametrize(("tokens", "experts"), [(64, 8), (50, 6)])
@pytest.mark.parametrize("gate", ["topk_softmax", "softmax", "sigmoid"])
def test_the_exact_price_is_that_of_sorted_margins(tokens: int, experts: int, gate: str) -> None:
    state = state_of(draw(tokens, experts), 0.1 * draw(1, experts, seed=1)[0], gate)
    for expert in range(experts):
        column = []
        for score_E in state.routing.scores_TE:
            alpha = sorted((score_E + state.expert_bias_E).tolist())[-TOP_K - 1]
            column.append(float(score_E[expert]) - alpha)
        rank = TOP_K * tokens / experts
        low, column = int(rank), sorted(column, reverse=True)
        expected = column[low] + (rank - low) * (column[min(low + 1, tokens - 1)] - column[low])
        assert -exact_bias(state)[expert].item() == pytest.approx(expected, abs=1e-6)


def test_without_ties_exactly_the_fair_number_of_margins_lies_above_the_price() -> None:
    """A token's (k+1)-th expert has the margin -b there, whatever the token: such margins tie. Here the last expert is
    everybody's (k+1)-th, two of the others lie above it and two below, and those four have no ties."""
    tokens, experts = 60, 5
    logits_TE = draw(tokens, experts).abs()
    lower_TE = torch.rand(tokens, experts - 1, generator=torch.Generator().manual_seed(1)).argsort(dim=-1) < TOP_K
    logits_TE[:, :-1] *= 1.0 - 2.0 * lower_TE
    logits_TE[:, -1] = 0.0
    state = state_of(logits_TE, gate="topk_softmax")
    margins_TE = margins(state, TOP_K)
    above_E = (margins_TE > upper_quantile(margins_TE, TOP_K / experts, None)).sum(dim=0)
    assert above_E[:-1].tolist() == [TOP_K * tokens // experts] * (experts - 1)
    assert margins_TE[:, -1].unique().tolist() == [0.0]  # all tie, so none lies above
    torch.testing.assert_close(-exact_bias(state), upper_quantile(margins_TE, TOP_K / experts, None), rtol=0, atol=1e-6)


@given(seed=seeds, gate=st.sampled_from(["topk_softmax", "softmax", "sigmoid"]))
def test_with_ties_the_price_still_parts_the_tokens_at_the_fair_number(seed: int, gate: str) -> None:
    tokens, experts = 96, 6
    state = state_of(draw(tokens, experts, seed), 0.2 * draw(1, experts, seed + 1)[0], gate)
    price_E, margins_TE = -exact_bias(state), margins(state, TOP_K)
    fair, rounding = TOP_K * tokens // experts, 2.0 / UNIT
    assert ((margins_TE > price_E + rounding).sum(dim=0) <= fair).all()
    assert ((margins_TE >= price_E - rounding).sum(dim=0) > fair).all()


@given(seed=seeds, shift=st.floats(0.0, 3.0))
def test_one_round_of_bip_is_one_quantile_update_where_its_floors_do_not_bind(seed: int, shift: float) -> None:
    """Scores and prices raised by constants raise the new prices alike, and nothing is below zero any more."""
    bias_E = 0.2 * draw(1, 6, seed + 1)[0]
    state = state_of(draw(60, 6, seed), bias_E, "topk_softmax")
    raised = 20.0 + shift
    _, price_E = solve_prices(state.routing.scores_TE + 100.0, raised - bias_E, TOP_K, 1, None)
    torch.testing.assert_close(price_E - raised, -exact_bias(state), rtol=0, atol=1e-4)


@given(seed=seeds, gate=st.sampled_from(["softmax", "sigmoid"]), tokens=st.integers(40, 300))
def test_the_histogram_finds_the_exact_quantile_within_one_bin(seed: int, gate: str, tokens: int) -> None:
    """Between the r-th and the (r+1)-th order statistic every value parts the tokens alike."""
    experts = 6
    state = state_of(draw(tokens, experts, seed), 0.3 * draw(1, experts, seed + 1)[0], gate)
    low, high = bin_range(state.expert_bias_E)
    width = ((high - low) / BINS).item() + 1e-6
    regret_TE = (-margins(state, TOP_K)).sort(dim=0).values
    rank = TOP_K * tokens / experts
    below_E, above_E = regret_TE[math.ceil(rank) - 1], regret_TE[math.ceil(rank)]
    found_E = pooled_bias(state)
    assert (found_E >= below_E - width).all()
    assert (found_E <= above_E + width).all()
    dense_E = above_E - below_E < width
    assert ((found_E - exact_bias(state)).abs()[dense_E] < 2 * width).all()


def test_a_pooled_histogram_is_one_batchs_and_a_mean_of_quantiles_is_not_the_quantile() -> None:
    first_TE, second_TE = draw(200, 6, seed=1, spread=2.0), draw(200, 6, seed=2, spread=2.0)
    whole = state_of(torch.cat((first_TE, second_TE)))
    parts = [state_of(first_TE), state_of(second_TE)]
    pooled_EC = sum(price_histogram(TOP_K).read(part) for part in parts)
    assert torch.equal(pooled_EC, price_histogram(TOP_K).read(whole))
    averaged_E = -decode_mean(sum(exact_price(TOP_K).read(part) for part in parts)[None])[0]
    assert (averaged_E - exact_bias(whole)).abs().max() > 0.05
    assert (bias_of(pooled_EC, whole.expert_bias_E) - exact_bias(whole)).abs().max() < 0.01


def test_the_ends_of_the_range_are_inside_it() -> None:
    """Saturated sigmoids are exactly 0 and 1."""
    logits_TE = torch.tensor([[50.0, 50.0, 50.0, -200.0]]).repeat(8, 1)  # alpha = 1, so the last regret is 1 - 0
    scores_TE = state_of(logits_TE).routing.scores_TE
    assert scores_TE.unique().tolist() == [0.0, 1.0]
    torch.testing.assert_close(pooled_bias(state_of(logits_TE))[3], torch.tensor(1.0), rtol=0, atol=2e-3)
    histogram_EC = price_histogram(TOP_K).read(state_of(logits_TE))
    assert not histogram_EC[:, [0, -1]].any()


@pytest.mark.parametrize("wrong", [40.0, -40.0, float("nan")])
def test_scores_outside_the_range_give_nan_and_are_never_clipped(wrong: float) -> None:
    logits_TE = draw(60, 4).sigmoid()
    logits_TE[:, 1] = wrong
    state = state_of(logits_TE, gate="topk_softmax")  # its scores are the logits
    histogram_EC = price_histogram(TOP_K).read(state)
    assert (histogram_EC.sum(dim=-1) == 60).all()
    assert bias_of(histogram_EC, state.expert_bias_E)[1].isnan()


@pytest.mark.parametrize("read", [exact_bias, pooled_bias])
def test_padding_has_no_influence(read: object) -> None:
    logits_TE, real_T = draw(90, 6), torch.arange(90) % 3 != 1
    padded_TE = logits_TE.clone()
    padded_TE[~real_T] = 30.0 * draw(30, 6, seed=5)
    alone_E = read(state_of(logits_TE[real_T]))  # type: ignore[operator]
    torch.testing.assert_close(read(state_of(padded_TE, real_T=real_T)), alone_E)  # type: ignore[operator]
    assert not torch.allclose(read(state_of(padded_TE, real_T=~real_T)), alone_E)  # type: ignore[operator]


def test_where_nothing_was_seen_the_histograms_bias_stays() -> None:
    bias_E = torch.tensor([0.3, -0.1, -0.2, 0.0])
    nobody = state_of(draw(5, 4), bias_E, real_T=torch.zeros(5, dtype=torch.bool))
    assert torch.equal(pooled_bias(nobody), bias_E)
