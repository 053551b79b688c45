"""Load metrics against plain Python, their bounds, and what a balanced random router must read."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.metrics.load import (
    avg_max_vio,
    count_idle_steps,
    dead_expert_frac,
    dead_window_tokens,
    gate_mass_share,
    load_cv,
    load_entropy,
    max_vio,
    min_vio,
    sup_max_vio,
    unused_expert_frac,
)
from chronomoe.model.router import count_assignments

counts = st.lists(st.integers(0, 1000), min_size=6, max_size=6).filter(any)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


BY_HAND: dict[Callable[[Tensor], Tensor], Callable[[list[int]], float]] = {
    max_vio: lambda n: max(n) / mean(n) - 1,
    min_vio: lambda n: 1 - min(n) / mean(n),
    load_cv: lambda n: math.sqrt(mean([(x - mean(n)) ** 2 for x in n])) / mean(n),
    load_entropy: lambda n: -sum(x / sum(n) * math.log(x / sum(n)) for x in n if x) / math.log(len(n)),
}
every_metric = pytest.mark.parametrize("metric", BY_HAND, ids=lambda metric: metric.__name__)


@every_metric
@given(first=counts, second=counts)
def test_a_metric_equals_its_formula_in_each_layer_by_itself(
    metric: Callable[[Tensor], Tensor], first: list[int], second: list[int]
) -> None:
    expected = torch.tensor([BY_HAND[metric](first), BY_HAND[metric](second)])
    torch.testing.assert_close(metric(torch.tensor([first, second])), expected, rtol=1e-4, atol=1e-5)


def route_at_random(num_experts: int, top_k: int, mean_load: int, generator: torch.Generator) -> Tensor:
    """Counts [1, E] of uniform random top-k choices without replacement."""
    num_tokens = mean_load * num_experts // top_k
    chosen = torch.rand(num_tokens, num_experts, generator=generator).topk(top_k, dim=-1).indices
    return chosen.flatten().bincount(minlength=num_experts)[None]


@given(num_experts=st.integers(2, 8), mean_load=st.integers(1, 30), top_k=st.integers(1, 2), seed=st.integers(0, 99))
def test_metrics_of_a_top_k_router_stay_in_their_bounds(
    num_experts: int, mean_load: int, top_k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    favourites = torch.randn(num_experts, generator=generator).mul(3).exp()
    chosen = torch.multinomial(favourites.expand(mean_load * num_experts, -1), top_k, generator=generator)
    counts_LE = chosen.flatten().bincount(minlength=num_experts)[None]
    ratio = num_experts / top_k
    assert -1e-6 <= max_vio(counts_LE) <= ratio - 1 + 1e-5
    assert -1e-6 <= min_vio(counts_LE) <= 1
    assert -1e-6 <= load_cv(counts_LE) <= math.sqrt(ratio - 1) + 1e-5
    assert math.log(top_k) / math.log(num_experts) - 1e-5 <= load_entropy(counts_LE) <= 1 + 1e-6


def test_one_expert_for_all_and_perfect_balance_read_the_ends_of_the_scale() -> None:
    counts_LE = torch.tensor([[12, 0, 0, 0], [3, 3, 3, 3]])
    assert max_vio(counts_LE).tolist() == [3.0, 0.0]
    assert min_vio(counts_LE).tolist() == [1.0, 0.0]
    torch.testing.assert_close(load_cv(counts_LE), torch.tensor([math.sqrt(3), 0.0]))
    torch.testing.assert_close(load_entropy(counts_LE), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    ("num_experts", "top_k", "mean_load", "floor", "spread"),
    [
        (8, 2, 128, 0.114, 0.036),
        (8, 2, 1024, 0.042, 0.014),
        (8, 2, 8192, 0.015, 0.005),
        (16, 2, 512, 0.075, 0.022),
        (64, 8, 512, 0.100, 0.020),
        (64, 1, 64, 0.293, 0.054),
    ],
)
def test_a_random_router_reads_the_published_floors(
    num_experts: int, top_k: int, mean_load: int, floor: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    trials = max(5, 200_000 // (mean_load * num_experts))
    loads = torch.cat([route_at_random(num_experts, top_k, mean_load, generator) for _ in range(trials)])
    rounding = 0.0005
    assert abs(max_vio(loads).mean().item() - floor) < 3 * spread / math.sqrt(trials) + rounding
    spare = 1 - top_k / num_experts
    assert load_cv(loads).square().mean().sqrt().item() == pytest.approx(math.sqrt(spare / mean_load), rel=0.1)
    missing = num_experts * spare / (2 * mean_load * num_experts * math.log(num_experts))
    assert 1 - load_entropy(loads).mean().item() == pytest.approx(missing, rel=0.2)


def test_an_expert_is_dead_after_its_limit_of_idle_steps_and_alive_with_its_next_token() -> None:
    idle_LE = torch.zeros(1, 4, dtype=torch.int64)
    dead = []
    for counts_LE in ([[5, 0, 0, 1]], [[5, 0, 1, 0]], [[5, 0, 0, 0]], [[5, 1, 0, 0]], [[5, 0, 0, 0]]):
        idle_LE = count_idle_steps(idle_LE, torch.tensor(counts_LE))
        dead.append(dead_expert_frac(idle_LE, dead_after_steps=3).item())
    assert idle_LE.tolist() == [[0, 1, 3, 4]]
    assert dead == [0.0, 0.0, 0.25, 0.25, 0.5]


@given(steps=st.lists(counts, min_size=1, max_size=6))
def test_average_and_supremum_over_steps_are_taken_after_the_maximum(steps: list[list[int]]) -> None:
    by_hand = [BY_HAND[max_vio](step) for step in steps]
    history_NLE = torch.tensor(steps)[:, None]
    assert avg_max_vio(history_NLE).item() == pytest.approx(mean(by_hand), rel=1e-4, abs=1e-5)
    assert sup_max_vio(history_NLE).item() == pytest.approx(max(by_hand), rel=1e-4, abs=1e-5)


def test_steps_without_tokens_are_left_out_of_a_history() -> None:
    history_NLE = torch.tensor([[[3, 1], [0, 0]], [[0, 0], [0, 0]], [[2, 2], [0, 0]]])
    assert avg_max_vio(history_NLE)[0] == 0.25
    assert sup_max_vio(history_NLE)[0] == 0.5
    assert avg_max_vio(history_NLE)[1].isnan()
    assert sup_max_vio(history_NLE)[1].isnan()


@given(seed=st.integers(0, 99), num_batches=st.integers(1, 10), tokens=st.integers(1, 50), sharpness=st.floats(0, 3))
def test_max_vio_of_an_evaluation_never_exceeds_the_mean_of_its_equal_batches(
    seed: int, num_batches: int, tokens: int, sharpness: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    favourites_E = torch.randn(6, generator=generator) * sharpness
    noise_NTE = torch.randn(num_batches, tokens, 6, generator=generator)
    ids_NTK = (favourites_E + noise_NTE).topk(2, dim=-1).indices
    batches_NLE = torch.stack([count_assignments(ids_TK, 6)[None] for ids_TK in ids_NTK])
    assert max_vio(batches_NLE.sum(dim=0)) <= avg_max_vio(batches_NLE) + 1e-5


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 8), (64, 1), (2, 1), (4, 4)])
def test_the_window_for_dead_experts_is_the_shortest_that_chance_does_not_fill(num_experts: int, top_k: int) -> None:
    def false_alarm(window: int) -> float:
        return num_experts * (1 - top_k / num_experts) ** window

    window = dead_window_tokens(num_experts, top_k)
    assert false_alarm(window) < 1e-6 <= false_alarm(window - 1)


def test_an_unused_expert_is_dead_only_if_the_window_is_long_enough_to_tell() -> None:
    window = dead_window_tokens(4, 2)  # 22 tokens of 2 picks
    for tokens in (window, window + 10):
        counts_LE = torch.tensor([[tokens, tokens, 0, 0], [2 * tokens - 2, 1, 1, 0]])
        assert unused_expert_frac(counts_LE, tokens).tolist() == [0.5, 0.25]
        assert unused_expert_frac(counts_LE, torch.tensor(tokens)).tolist() == [0.5, 0.25]
    assert unused_expert_frac(torch.tensor([[window - 1, window - 1, 0, 0]]), window - 1).isnan()
    assert unused_expert_frac(torch.zeros(1, 4, dtype=torch.int64), 0).isnan()


def test_assignments_and_gate_mass_are_two_readings() -> None:
    ids_TK = torch.tensor([[0, 1], [0, 2], [3, 1]])
    weights_TK = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]])
    assert count_assignments(ids_TK, 5).tolist() == [2, 2, 1, 1, 0]
    mass = gate_mass_share(ids_TK, weights_TK, 5)
    torch.testing.assert_close(mass, torch.tensor([1.7, 0.6, 0.2, 0.5, 0.0]).double() / 3, rtol=1e-6, atol=1e-7)
    real_T = torch.tensor([True, False, True])
    assert count_assignments(ids_TK, 5, real_T).tolist() == [1, 2, 0, 1, 0]
    assigned_TK = torch.tensor([[True, False], [True, True], [False, False]])
    assert count_assignments(ids_TK, 5, assigned_TK=assigned_TK).tolist() == [2, 0, 1, 0, 0]
    assert count_assignments(ids_TK, 5, real_T, assigned_TK).tolist() == [1, 0, 0, 0, 0]
    mass = gate_mass_share(ids_TK, weights_TK, 5, real_T)
    torch.testing.assert_close(mass, torch.tensor([0.9, 0.6, 0.0, 0.5, 0.0]).double() / 2, rtol=1e-6, atol=1e-7)
