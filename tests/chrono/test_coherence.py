"""Coherence measures against loops over layers and experts, with the ranges and nulls they state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chronomoe.chrono.coherence import MEASURES, alignment, entropy, phase_order, stability

L, E = 3, 5
loads = st.lists(st.lists(st.integers(0, 50), min_size=E, max_size=E).filter(any), min_size=L, max_size=L)
RANGES = {"entropy": (0, 1), "alignment": (-1, 1), "stability": (0, 1)}


def to_shares(table: list[list[int]]) -> Tensor:
    counts_LE = torch.tensor(table)
    return counts_LE / counts_LE.sum(dim=-1, keepdim=True)


def entropy_by_loop(now: list[list[float]], before: list[list[float]]) -> list[float]:
    return [1 + sum(p * math.log(p) for p in layer if p > 0) / math.log(len(layer)) for layer in now]


def alignment_by_loop(now: list[list[float]], before: list[list[float]]) -> list[float]:
    deviations = [[p - 1 / len(layer) for p in layer] for layer in now]

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = math.hypot(*a) * math.hypot(*b)
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths > 1e-9 else 0.0

    others = [[b for j, b in enumerate(deviations) if j != i] for i in range(len(deviations))]
    return [sum(cosine(a, b) for b in rest) / len(rest) for a, rest in zip(deviations, others, strict=True)]


def stability_by_loop(now: list[list[float]], before: list[list[float]]) -> list[float]:
    return [1 - sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2 for p, q in zip(now, before, strict=True)]


BY_LOOP = {"entropy": entropy_by_loop, "alignment": alignment_by_loop, "stability": stability_by_loop}


def test_every_measure_has_a_loop_to_compare_with() -> None:
    assert MEASURES.keys() == BY_LOOP.keys() == RANGES.keys()


@pytest.mark.parametrize("measure", MEASURES)
@given(now=loads, before=loads)
def test_a_measure_equals_its_loop_and_stays_in_its_range(
    measure: str, now: list[list[int]], before: list[list[int]]
) -> None:
    now_LE, before_LE = to_shares(now), to_shares(before)
    reading_L = MEASURES[measure](now_LE, before_LE)
    expected = BY_LOOP[measure](now_LE.double().tolist(), before_LE.double().tolist())
    torch.testing.assert_close(reading_L, torch.tensor(expected), rtol=0, atol=1e-5)
    low, high = RANGES[measure]
    assert low - 1e-6 <= reading_L.min()
    assert reading_L.max() <= high + 1e-6


def test_entropy_coherence_reads_zero_for_a_uniform_load_and_one_for_a_single_expert() -> None:
    shares = torch.stack((torch.full((E,), 1 / E), torch.eye(E)[2]))
    torch.testing.assert_close(entropy(shares, shares), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)


def test_alignment_reads_one_for_equal_layers_minus_one_for_opposite_ones_and_zero_without_deviation() -> None:
    tilt_E = 0.2 + 0.02 * torch.arange(-2, 3)
    fair_E = torch.full((E,), 0.2)
    for other_E, expected in ((tilt_E, 1.0), (0.4 - tilt_E, -1.0), (fair_E, 0.0)):
        shares = torch.stack((tilt_E, other_E))
        torch.testing.assert_close(alignment(shares, shares), torch.full((2,), expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "experts"), [(2, 8), (4, 16), (8, 4)])
def test_alignment_of_independent_layers_has_its_stated_null(layers: int, experts: int) -> None:
    generator, trials = torch.Generator().manual_seed(0), 2000
    readings = []
    for _ in range(trials):
        shares = 1 / experts + 1e-3 * torch.randn(layers, experts, generator=generator)
        shares = shares - shares.mean(dim=-1, keepdim=True) + 1 / experts
        readings.append(alignment(shares, shares)[0])
    stated = 1 / math.sqrt((experts - 1) * (layers - 1))
    assert torch.stack(readings).mean().abs() < 3 * stated / math.sqrt(trials)
    assert torch.stack(readings).std().item() == pytest.approx(stated, rel=0.07)


def test_stability_reads_one_at_rest_and_zero_when_all_load_moves() -> None:
    here, there = torch.eye(E)[:2], torch.eye(E)[2:4]
    assert stability(here, here).tolist() == [1.0, 1.0]
    assert stability(here, there).tolist() == [0.0, 0.0]


def test_phase_order_reads_one_for_equal_phases_and_zero_for_opposite_ones() -> None:
    assert phase_order(torch.full((2, 4), 1.3)).item() == pytest.approx(1.0)
    opposite = torch.tensor([[0.0, math.pi], [math.pi / 2, -math.pi / 2]])
    assert phase_order(opposite).item() == pytest.approx(0.0, abs=1e-6)
