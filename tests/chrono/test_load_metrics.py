"""Load metrics against plain Python, their bounds, and what a balanced random router must read."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.metrics import count_idle_steps, dead_expert_frac, load_cv, load_entropy, max_vio, min_vio

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


def test_max_vio_of_the_sum_never_exceeds_the_mean_of_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([route_at_random(8, 2, 32, generator) for _ in range(20)])
    assert max_vio(batches.sum(dim=0)) <= max_vio(batches.flatten(0, 1)).mean()


def test_an_expert_is_dead_after_its_limit_of_idle_steps_and_alive_with_its_next_token() -> None:
    idle_LE = torch.zeros(1, 4, dtype=torch.int64)
    dead = []
    for counts_LE in ([[5, 0, 0, 1]], [[5, 0, 1, 0]], [[5, 0, 0, 0]], [[5, 1, 0, 0]], [[5, 0, 0, 0]]):
        idle_LE = count_idle_steps(idle_LE, torch.tensor(counts_LE))
        dead.append(dead_expert_frac(idle_LE, dead_after_steps=3).item())
    assert idle_LE.tolist() == [[0, 1, 3, 4]]
    assert dead == [0.0, 0.0, 0.25, 0.25, 0.5]
