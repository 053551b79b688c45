"""Co-activation against counting pairs one by one, and the lift of random subsets."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.metrics.coactivation import conditional_probability, count_pairs, lift, lift_extremes


def select(tokens: int, experts: int, top_k: int, seed: int = 0) -> Tensor:
    return torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed)).topk(top_k).indices


@given(seed=st.integers(0, 999), top_k=st.integers(1, 5))
def test_every_pair_of_every_token_is_counted(seed: int, top_k: int) -> None:
    ids_TK = select(7, 6, top_k, seed)
    expected_EE = torch.zeros(6, 6, dtype=torch.int64)
    for chosen in ids_TK.tolist():
        for i, j in itertools.product(chosen, chosen):
            expected_EE[i, j] += 1
    pairs_EE = count_pairs(ids_TK, 6)
    assert torch.equal(pairs_EE, expected_EE)
    assert pairs_EE.triu(1).sum() == 7 * top_k * (top_k - 1) // 2
    assert torch.equal(count_pairs(ids_TK[:3], 6) + count_pairs(ids_TK[3:], 6), expected_EE)
    real_T = torch.tensor([True, False, True, True, False, True, False])
    assert torch.equal(count_pairs(ids_TK, 6, real_T), count_pairs(ids_TK[real_T], 6))


@pytest.mark.parametrize(("experts", "top_k", "raw"), [(8, 2, 0.571), (16, 2, 0.533), (64, 8, 0.889)])
def test_random_subsets_read_a_lift_of_one_and_the_null_of_the_conditional(
    experts: int, top_k: int, raw: float
) -> None:
    tokens = 20_000
    pairs_EE = count_pairs(select(tokens, experts, top_k), experts)
    off_diagonal = ~torch.eye(experts, dtype=torch.bool)
    pair_share = top_k * (top_k - 1) / (experts * (experts - 1))
    sd = (1 / (tokens * pair_share)) ** 0.5  # of one pair's lift
    lifts_N = lift(pairs_EE)[off_diagonal]
    assert abs(lifts_N.mean() - 1) < 3 * sd / experts**0.5
    assert (lifts_N - 1).abs().max() < 5 * sd
    counts_E = pairs_EE.diagonal().double()
    raw_EE = tokens * pairs_EE / (counts_E[:, None] * counts_E)
    assert raw_EE[off_diagonal].mean().item() == pytest.approx(raw, abs=0.0015)
    null = (top_k - 1) / (experts - 1)
    assert conditional_probability(pairs_EE)[off_diagonal].mean().item() == pytest.approx(null, rel=0.01)
    assert (conditional_probability(pairs_EE).diagonal() == 1).all()


def test_random_subsets_of_all_sizes_read_a_lift_of_one_too() -> None:
    tokens = 20_000
    ids_TK = select(tokens, 6, 6)
    assigned_TK = torch.arange(6) < torch.randint(0, 7, (tokens, 1), generator=torch.Generator().manual_seed(1))
    pairs_EE = count_pairs(ids_TK, 6, assigned_TK=assigned_TK)
    assert pairs_EE.trace() == assigned_TK.sum()
    assert lift(pairs_EE)[~torch.eye(6, dtype=torch.bool)].sub(1).abs().max() < 0.03


def test_experts_that_always_meet_stand_out_and_those_that_never_meet_read_zero() -> None:
    ids_TK = torch.tensor([[0, 1], [2, 3]]).repeat(30, 1)
    lift_EE = lift(count_pairs(ids_TK, 4))
    # they meet in 1/2 of all tokens instead of 1/6
    assert lift_EE[0, 1].item() == pytest.approx(3)
    assert lift_EE[0, 2] == 0
    extremes = lift_extremes(lift_EE)
    assert extremes.lowest == 0
    assert extremes.highest.item() == pytest.approx(3)
    assert conditional_probability(count_pairs(ids_TK, 4))[0].tolist() == [1, 1, 0, 0]


def test_one_expert_a_token_has_no_pairs_and_no_lift() -> None:
    pairs_EE = count_pairs(select(100, 4, 1), 4)
    assert lift(pairs_EE).isnan().all()
    assert all(extreme.isnan() for extreme in lift_extremes(lift(pairs_EE)))


def test_an_unused_expert_has_no_lift_and_spoils_no_other() -> None:
    lift_EE = lift(count_pairs(select(500, 3, 2), 4))
    assert lift_EE[3].isnan().all()
    assert lift_EE[:, 3].isnan().all()
    assert lift_EE[:3, :3].isfinite().sum() == 6
    assert conditional_probability(count_pairs(select(500, 3, 2), 4))[3].isnan().all()
    assert lift_extremes(lift_EE).highest.isfinite()


def test_layers_at_once_equal_layers_one_by_one() -> None:
    ids_LTK = torch.stack([select(50, 6, 2, seed) for seed in range(3)])
    pairs_LEE = count_pairs(ids_LTK, 6)
    for layer, ids_TK in enumerate(ids_LTK):
        assert torch.equal(pairs_LEE[layer], count_pairs(ids_TK, 6))
        torch.testing.assert_close(lift(pairs_LEE)[layer], lift(pairs_LEE[layer]), equal_nan=True)
        torch.testing.assert_close(
            lift_extremes(lift(pairs_LEE)).highest[layer], lift_extremes(lift(pairs_LEE[layer])).highest
        )
